"""HTML of the Generate and Restore tabs. Values go in through ``{{…}}`` only, and all of them through ``literal``.

Buttons inside a template say what they do in ``data-do`` and to what in ``data-item``; ``BUTTONS`` of ``page_js``
makes a press the click event of the component.
"""

from __future__ import annotations

#: Toggles. Of the value {"tiles", "groups", "chosen"} the browser changes only "chosen", a list of ids; None from the
#: server leaves chosen what is. Everything is in the value, for other properties of a tab nobody opened yet are lost.
TILES = """
<div class="hs-tiles">
  {{#if value.title}}<h3>{{value.title}}</h3>{{/if}}
  {{#if value.groups}}
  <div class="hs-chips" role="group" aria-label="{{value.name}}: show">
    <button type="button" class="hs-chip" data-group="" aria-pressed="true">All</button>
    {{#each value.groups}}
    <button type="button" class="hs-chip" data-group="{{this}}" aria-pressed="false">{{this}}</button>
    {{/each}}
  </div>
  {{/if}}
  <ul class="hs-tile-list" role="group" aria-label="{{value.name}}">
    {{#each value.tiles}}
    <li data-in="{{this.group}}">
      <button type="button" class="hs-tile" data-tile="{{this.id}}" aria-pressed="false">
        {{#if this.picture}}<img src="{{this.picture}}" alt="" loading="lazy">{{else}}<span class="hs-plain-tile"
          aria-hidden="true">{{this.letter}}</span>{{/if}}
        <span class="hs-tile-name">{{this.title}}</span>
        <span class="hs-tick" aria-hidden="true">✓</span>
      </button>
    </li>
    {{/each}}
  </ul>
  <p class="hs-tile-foot"><span class="hs-soft" aria-live="polite" data-count></span>
    <button type="button" class="hs-link" data-all>Choose all</button>
    <button type="button" class="hs-link" data-none>Choose none</button></p>
</div>
"""

TILES_JS = """
let group = '', on = [];
const all = (what) => [...element.querySelectorAll(what)];
const ids = () => all('[data-tile]').map((tile) => tile.dataset.tile);
const shown = () => all('[data-tile]').filter((tile) => !tile.closest('li').hidden).map((tile) => tile.dataset.tile);
const show = () => {
  if (group && !all('[data-group]').some((chip) => chip.dataset.group === group)) group = '';
  all('[data-group]').forEach((chip) => chip.setAttribute('aria-pressed', String(chip.dataset.group === group)));
  all('li[data-in]').forEach((item) => { item.hidden = group !== '' && item.dataset.in !== group; });
  all('[data-tile]').forEach((tile) => tile.setAttribute('aria-pressed', String(on.includes(tile.dataset.tile))));
  const count = element.querySelector('[data-count]');
  const text = `${on.length} of ${ids().length} chosen`;
  if (count && count.textContent !== text) count.textContent = text;
};
const choose = (chosen) => { on = chosen; props.value = {...props.value, chosen: on}; queueMicrotask(show); };
const take = () => {
  const sent = props.value && props.value.chosen;
  if (Array.isArray(sent)) on = sent; else choose(on.filter((id) => ids().includes(id)));
  show();
};
element.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (!button) return;
  const tile = button.dataset.tile;
  if (button.dataset.group !== undefined) { group = button.dataset.group; show(); }
  else if (tile !== undefined) choose(on.includes(tile) ? on.filter((id) => id !== tile) : [...on, tile]);
  else if (button.dataset.all !== undefined) choose([...on, ...shown().filter((id) => !on.includes(id))]);
  else if (button.dataset.none !== undefined) choose(on.filter((id) => !shown().includes(id)));
});
watch('value', take);
take();
"""

#: Small pictures to look at closely and to star, and the pages they are on.
GRID = """
<section class="hs-shots" aria-label="{{value.name}}">
  {{#if value.title}}<h3>{{value.title}}</h3>{{/if}}
  {{#if value.empty}}<p class="hs-soft hs-none">{{value.empty}}</p>{{/if}}
  <ul>
    {{#each value.shots}}
    <li class="{{#if this.current}}hs-current{{/if}}">
      <button type="button" class="hs-shot" data-do="open" data-item="{{this.id}}"
        aria-pressed="{{#if this.current}}true{{else}}false{{/if}}">
        {{#if this.picture}}<img src="{{this.picture}}" alt="{{this.alt}}" loading="lazy">{{else}}<span
          class="hs-plain-tile">{{this.alt}}</span>{{/if}}
        <span class="hs-shot-line"><b>{{this.first}}</b><span>{{this.second}}</span></span>
      </button>
      <button type="button" class="hs-star" data-do="star" data-item="{{this.id}}" title="Star"
        aria-pressed="{{#if this.starred}}true{{else}}false{{/if}}" aria-label="Star: {{this.alt}}"
        >{{#if this.starred}}★{{else}}☆{{/if}}</button>
    </li>
    {{/each}}
  </ul>
  {{#if value.pages}}
  <nav class="hs-pages" aria-label="Pages">
    <button type="button" class="hs-button" data-do="page" data-item="{{value.before}}"
      {{#unless value.has_before}}disabled{{/unless}}>‹ Previous</button>
    <span class="hs-soft" aria-live="polite">{{value.pages}}</span>
    <button type="button" class="hs-button" data-do="page" data-item="{{value.after}}"
      {{#unless value.has_after}}disabled{{/unless}}>Next ›</button>
  </nav>
  {{/if}}
</section>
"""

#: One picture, large.
LARGE = """
{{#if value.picture}}
<figure class="hs-large"><img src="{{value.picture}}" alt="{{value.alt}}"></figure>
{{else}}{{#if value.alt}}<p class="hs-soft">{{value.alt}}</p>{{/if}}{{/if}}
"""

#: The large picture comes into view when another one is opened.
LARGE_JS = """
watch('value', () => {
  const box = element.getBoundingClientRect();
  if (box.height && box.top < 0) element.scrollIntoView({block: 'start'});
});
"""

FACTS = """
{{#if value.facts}}
<section aria-label="About this picture">
  <h3 class="hs-facts-title">{{value.title}}</h3>
  {{#if value.warning}}<p class="hs-problem" role="note">{{value.warning}}</p>{{/if}}
  <dl class="hs-facts">{{#each value.facts}}<div><dt>{{this.name}}</dt><dd>{{this.value}}</dd></div>{{/each}}</dl>
</section>
{{/if}}
"""

HEADING = """
<section class="hs-heading"><h2>{{value.title}}</h2>
{{#if value.text}}<p class="hs-soft">{{value.text}}</p>{{/if}}</section>
"""

SMALL_HEADING = '<h3>{{value.title}}</h3><p class="hs-soft">{{value.text}}</p>'

#: A contact sheet, small; a press shows it as large as the window allows.
SHEET = """
{{#if value.picture}}
<button type="button" class="hs-sheet" data-enlarge aria-label="{{value.text}}: enlarge">
  <img src="{{value.picture}}" alt="{{value.text}}"><span class="hs-sheet-hint" aria-hidden="true">Enlarge</span>
</button>
<dialog class="hs-dialog" aria-label="{{value.text}}">
  <button type="button" class="hs-button" data-close>Close</button>
  <img src="{{value.large}}" alt="{{value.text}}" loading="lazy">
</dialog>
{{/if}}
"""

SHEET_JS = """
element.addEventListener('click', (event) => {
  const dialog = element.querySelector('dialog');
  if (!dialog) return;
  if (event.target.closest('[data-enlarge]')) dialog.showModal();
  else if (event.target === dialog || event.target.closest('[data-close]')) dialog.close();
});
"""

#: Plain sentences: the plan before a start, or what is being worked on. One line each.
LINES = '{{#if value.lines}}<div class="hs-lines">{{#each value.lines}}<p>{{this}}</p>{{/each}}</div>{{/if}}'

#: How a picture will be cut; beside it what should be known about the cut.
CUTS = """
{{#if value.cuts}}
<ul class="hs-cuts" aria-label="How the picture will be cut">
  {{#each value.cuts}}
  <li><img src="{{this.picture}}" alt="{{this.alt}}"><b>{{this.title}}</b><span class="hs-soft">{{this.size}}</span>
    {{#if this.note}}<span class="hs-soft">{{this.note}}</span>{{/if}}</li>
  {{/each}}
</ul>
{{/if}}
"""

#: Two pictures of one size over each other; the range input says how much of the first is seen.
COMPARE = """
{{#if value.after}}
<figure class="hs-compare">
  <div class="hs-ba" style="--p:50%">
    <img class="hs-after" src="{{value.after}}" alt="After: {{value.alt}}" draggable="false">
    <img class="hs-before" src="{{value.before}}" alt="Before: {{value.alt}}" draggable="false">
    <span class="hs-ba-tag hs-ba-left" aria-hidden="true">Before</span>
    <span class="hs-ba-tag hs-ba-right" aria-hidden="true">After</span>
    <span class="hs-seam" aria-hidden="true"></span>
  </div>
  <input type="range" min="0" max="100" step="1" value="50" aria-label="Compare before and after"
    aria-valuetext="half before, half after">
</figure>
{{/if}}
"""

COMPARE_JS = """
const put = () => {
  const box = element.querySelector('.hs-ba'), range = element.querySelector('input[type=range]');
  if (!box || !range) return;
  box.style.setProperty('--p', range.value + '%');
  range.setAttribute('aria-valuetext', `${range.value} % before, ${100 - range.value} % after`);
};
const follow = (event) => {
  const box = event.target.closest && event.target.closest('.hs-ba');
  if (!box || (event.type === 'pointermove' && !event.buttons)) return;
  const place = box.getBoundingClientRect();
  const share = Math.round(100 * (event.clientX - place.left) / place.width);
  element.querySelector('input[type=range]').value = Math.min(100, Math.max(0, share));
  put();
};
element.addEventListener('input', put);
element.addEventListener('pointerdown', follow);
element.addEventListener('pointermove', follow);
watch('value', put);
put();
"""

#: Results of one picture with different weights, side by side.
VARIANTS = """
{{#if value.variants}}
<section class="hs-variants" aria-label="The same picture with other weights">
  <h3>Side by side</h3>
  <ul>
    {{#each value.variants}}
    <li class="{{#if this.current}}hs-current{{/if}}">
      {{#if this.id}}<button type="button" class="hs-shot" data-do="open" data-item="{{this.id}}"
        aria-pressed="{{#if this.current}}true{{else}}false{{/if}}">
        <img src="{{this.picture}}" alt="{{this.alt}}" loading="lazy">
        <span class="hs-shot-line"><b>{{this.title}}</b><span>{{this.text}}</span></span></button>
      {{else}}<div class="hs-shot"><img src="{{this.picture}}" alt="{{this.alt}}" loading="lazy">
        <span class="hs-shot-line"><b>{{this.title}}</b><span>{{this.text}}</span></span></div>{{/if}}
    </li>
    {{/each}}
  </ul>
</section>
{{/if}}
"""

ENDS = """
<div class="hs-ends" aria-hidden="true"><span>← {{value.low}}</span><span>{{value.high}} →</span></div>
"""

#: A licence to be read before something is used for the first time.
LICENCE = '{{#if value.text}}<p class="hs-licence">{{value.text}}</p>{{/if}}'
