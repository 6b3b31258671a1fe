"""Showing a licence and keeping that it was accepted."""

from __future__ import annotations

from collections.abc import Callable

from headshot_ui.commands.job_runner import Context


def accept_licence(restorer_id: str, context: Context, agreed: Callable[[], bool] = lambda: True) -> None:
    """Show a restorer's terms, then keep the acceptance if ``agreed`` says so. Raises ModelError for an unknown id."""
    from headshot_ui.restoration import licence

    terms = licence.terms(restorer_id)
    show_and_accept(restorer_id, terms, lambda: licence.accept(context.settings, restorer_id), context, agreed)


def show_and_accept(
    name: str, terms: str, accept: Callable[[], None], context: Context, agreed: Callable[[], bool]
) -> None:
    """Show ``terms``, then call ``accept`` if ``agreed`` says so, and tell it."""
    if terms:
        print(terms, file=context.progress_stream, flush=True)
    if agreed():
        accept()
        print(f"The licence of {name} is accepted.", file=context.progress_stream)
