"""Showing a licence and keeping that it was accepted."""

from __future__ import annotations

from collections.abc import Callable

from headshot_ui.commands.job_runner import Context


def accept_licence(restorer_id: str, context: Context, agreed: Callable[[], bool] = lambda: True) -> None:
    """Show the terms, then keep the acceptance if ``agreed`` says so. Raises ModelError for an unknown id."""
    from headshot_ui.restoration import licence

    terms = licence.terms(restorer_id)
    if terms:
        print(terms, file=context.progress_stream, flush=True)
    if agreed():
        licence.accept(context.settings, restorer_id)
        print(f"The licence of {restorer_id} is accepted.", file=context.progress_stream)
