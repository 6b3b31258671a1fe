"""The few scripts of the page: accessible names, arrow keys, buttons inside templates."""

from __future__ import annotations

#: Gradio calls its thumbnails "Thumbnail 1 of 9" to people who cannot see them; the caption says more.
NAME_THUMBNAILS = """() => {
  const name = () => document.querySelectorAll('button.thumbnail-item img[alt]').forEach((image) => {
    const button = image.closest('button');
    if (image.alt && button.getAttribute('aria-label') !== image.alt) button.setAttribute('aria-label', image.alt);
  });
  new MutationObserver(name).observe(document.body, {childList: true, subtree: true});
}"""

#: Arrow keys, Home and End move between tabs, as people who use a keyboard expect of a list of tabs.
TAB_KEYS = """() => {
  document.addEventListener('keydown', (event) => {
    const tab = event.target.closest && event.target.closest('[role=tab]');
    if (!tab || event.ctrlKey || event.altKey || event.metaKey) return;
    const list = tab.closest('[role=tablist]');
    const all = [...list.querySelectorAll('[role=tab]')].filter((each) => each.offsetParent && !each.disabled);
    const at = all.indexOf(tab), last = all.length - 1;
    const next = at === last ? 0 : at + 1, before = at === 0 ? last : at - 1;
    const to = {ArrowRight: next, ArrowLeft: before, Home: 0, End: last}[event.key];
    if (to === undefined || at < 0) return;
    event.preventDefault();
    all[to].focus();
    all[to].click();
  });
}"""

#: The page takes clicks once it knows whom and what to show: an early click must not be undone by the answer to that.
READY = "() => { document.body.classList.add('hs-ready'); }"
READY_AT_LATEST_MS = 8000

#: Once a request of the page found no program, gradio passes every later press over in silence until it has loaded the
#: page anew, seconds after the program is back. So nothing can be pressed meanwhile, and a sentence says why. Gradio
#: tells of it by its own message alone. It waits for ever where people have to log in, because the new program knows
#: none of them: the page is loaded anew for that answer (401) too.
AWAY = """() => {
  const lost = () => [...document.querySelectorAll('[data-testid=toast-text]')].some(
    (each) => each.textContent.includes('Connection to the server was lost'));
  const seen = new MutationObserver(() => {
    if (!lost()) return;
    seen.disconnect();
    document.body.classList.add('hs-away');
    document.querySelectorAll('.gradio-container main').forEach((each) => { each.inert = true; });
    const told = document.createElement('p');
    told.className = 'hs-away-told';
    told.setAttribute('role', 'alert');
    told.textContent = 'The program does not answer. As soon as it does, this page opens anew by itself.';
    document.querySelector('.gradio-container').append(told);
    const asking = setInterval(async () => {
      const answer = await fetch('gradio_api/app_id', {cache: 'no-store'}).catch(() => null);
      if (!answer || !(answer.ok || answer.status === 401)) return;
      clearInterval(asking);
      location.reload();
    }, 1000);
  });
  seen.observe(document.body, {childList: true, subtree: true});
}"""

#: What runs when the page opens.
ON_LOAD = f"() => {{ ({NAME_THUMBNAILS})(); ({TAB_KEYS})(); ({AWAY})(); setTimeout({READY}, {READY_AT_LATEST_MS}); }}"

#: ``js_on_load`` of a gr.HTML with ``<button data-do="…" data-item="…">``: a press becomes its click event.
BUTTONS = """element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-do]');
  if (!button || button.disabled) return;
  const show = button.dataset.show && document.querySelector(button.dataset.show);
  if (show) show.scrollIntoView({block: button.dataset.block || 'nearest'});
  trigger('click', {do: button.dataset.do, item: button.dataset.item || ''});
});"""

#: The same, and the pressed button stays marked (aria-pressed) until another one is pressed.
CHOICE_BUTTONS = (
    BUTTONS
    + """
let chosen = null;
const mark = () => element.querySelectorAll('button[data-do]').forEach((button) =>
  button.setAttribute('aria-pressed', String(button.dataset.item === chosen)));
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-do]');
  if (button) { chosen = button.dataset.item; mark(); }
});
watch('value', mark);"""
)

#: After “Start training”: the card that shows it, unless something has to be put right first.
SHOW_TRAINING = """() => {
  if (document.querySelector('#train-settings [role=alert]')) return;
  const look = (tries) => {
    const card = document.querySelector('#training [role=progressbar]');
    if (card) document.querySelector('#training').scrollIntoView({block: 'nearest'});
    else if (tries) setTimeout(look, 200, tries - 1);
  };
  look(20);
}"""

#: The box of a LoRA to take along has come up below the list: there it is seen, and the keyboard is in it.
SHOW_LORA = """() => {
  const look = (tries) => {
    const box = document.querySelector('#take-lora');
    const first = box && box.querySelector('[data-run]') && box.querySelector('input[type=radio]:checked');
    if (first) { box.scrollIntoView({block: 'nearest'}); first.focus({preventScroll: true}); }
    else if (tries) setTimeout(look, 100, tries - 1);
  };
  look(100);
}"""

#: It is closed: back to the button that opened it.
BACK_TO_TAKE = """() => {
  const run = document.querySelector('#take-lora [data-run]');
  const opened = run && document.querySelector(`#history [data-do=take][data-item="${CSS.escape(run.dataset.run)}"]`);
  if (opened) opened.focus();
  return [];
}"""

#: The button that holds the file is pressed for the person, once the browser knows of the file.
PRESS_LORA = """(file) => {
  if (file) setTimeout(() => document.querySelector('#take-lora-button')?.click(), 150);
}"""
