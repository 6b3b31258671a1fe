"""HTML of the page's own parts. Values go in through ``{{…}}`` only, which escapes them, and ``literal.py``.

Gradio fills these in the browser (Handlebars) and changes only what differs, so nothing flickers.
"""

from __future__ import annotations

HEADER = """
<header class="hs-header">
  <h1>Headshots</h1>
  <p>Photos of yourself in, professional headshots out.
     <span class="hs-private">Everything happens on this computer.</span></p>
</header>
"""

NEW_PERSON = """
{{#if value.first}}
<div class="hs-welcome"><h2>Who is it for?</h2>
<p class="hs-soft">Give a first name. Photos, models and pictures of this person are kept together under it.</p></div>
{{else}}
<div class="hs-welcome"><h2>New person</h2></div>
{{/if}}
"""

DELETE_PERSON = """
<section class="hs-delete" aria-label="Delete {{value.name}}">
  <h2>Delete everything about “{{value.name}}”?</h2>
  {{#if value.kept}}
  <p class="hs-soft">This is removed for good ({{value.size}}):</p>
  <ul>{{#each value.kept}}<li>{{this}}</li>{{/each}}</ul>
  {{else}}<p class="hs-soft">Nothing is kept of this person yet.</p>{{/if}}
</section>
"""

PROBLEM = '{{#if value.text}}<p class="hs-problem" role="alert">{{value.text}}</p>{{/if}}'

NOTE = '{{#if value.text}}<p class="hs-note">{{value.text}}</p>{{/if}}'

BAR = """
{{#if value.shown}}
<section class="hs-bar-box" aria-label="Jobs">
  {{#if value.card}}<p class="hs-note" role="status">{{value.card}}</p>{{/if}}
  {{#each value.running}}
  <div class="hs-job hs-running">
    <div class="hs-job-line">
      <b>{{this.title}}</b>
      <span class="hs-job-stage" aria-live="polite">{{this.stage}}</span>
      <span class="hs-soft hs-steps">{{this.steps}}</span>
      <span class="hs-job-buttons">
      {{#if this.cancelling}}<button type="button" class="hs-button" disabled>Cancelling …</button>
      {{else}}<button type="button" class="hs-button" data-do="cancel" data-item="{{this.id}}"
        aria-label="Cancel: {{this.title}}">Cancel</button>{{/if}}
      </span>
    </div>
    <div class="hs-bar" role="progressbar" aria-label="{{this.title}}: {{this.stage}}" aria-valuemin="0"
       aria-valuemax="100" aria-valuenow="{{this.percent}}"><div style="width:{{this.percent}}%"></div></div>
    <p class="hs-soft hs-left"><span>{{this.percent}} %</span> <span>{{this.left}}</span></p>
  </div>
  {{/each}}
  {{#each value.waiting}}
  <div class="hs-job hs-waiting">
    <div class="hs-job-line">
      <b>{{this.title}}</b>
      <span class="hs-job-stage hs-soft">{{this.place}}</span>
      <span class="hs-job-buttons">
      <button type="button" class="hs-button" data-do="cancel" data-item="{{this.id}}"
        aria-label="Cancel: {{this.title}}">Cancel</button>
      </span>
    </div>
  </div>
  {{/each}}
  {{#each value.finished}}
  <div class="hs-job hs-{{this.state}}" role="status">
    <div class="hs-job-line">
      <b>{{this.title}}</b>
      <span class="hs-job-stage">{{this.text}}</span>
      <span class="hs-job-buttons">
      <button type="button" class="hs-button" data-do="show" data-item="{{this.id}}"
        data-show="#tabs" data-block="start"
        aria-label="Show: {{this.title}}">Show</button>
      <button type="button" class="hs-button hs-close" data-do="dismiss" data-item="{{this.id}}"
        aria-label="Dismiss: {{this.title}}" title="Dismiss">✕</button>
      </span>
    </div>
    {{#if this.folder}}<p class="hs-soft hs-left">In <code>{{this.folder}}</code></p>{{/if}}
  </div>
  {{/each}}
</section>
{{/if}}
"""

#: An empty state: what is missing. A button that leads there follows it.
EMPTY = '<div class="hs-empty"><h2>{{value.title}}</h2><p class="hs-soft">{{value.text}}</p></div>'

HOW = """
<aside class="hs-how" aria-label="How it works">
  <h2>How it works</h2>
  <ol>
    <li><b>Dataset:</b> your photos are checked and cropped; what cannot be used is named with the reason.</li>
    <li><b>Train:</b> a model learns your face.</li>
    <li><b>Generate:</b> headshots are drawn and ranked by how much they look like you.</li>
    <li><b>Restore:</b> faces are repaired and pictures enlarged, where that helps.</li>
  </ol>
  <h2>Photos that work well</h2>
  <ul>
    <li>About twelve, of you alone, face clearly visible</li>
    <li>Different days, light, clothes and backgrounds</li>
    <li>Straight on, and turned a little to both sides</li>
    <li>No filters, no sunglasses, nothing blurred</li>
  </ul>
</aside>
"""

TWO_WAYS = """
<p class="hs-soft"><b>Check my photos</b> goes step by step: you see what is used before anything is learned.
<b>Make my headshots</b> does everything in one go: check, train and draw. The results appear on the tabs.</p>
"""

CHOSEN = """
{{#if value.count}}
<div class="hs-chosen">
  {{#if value.photos}}
  <ul aria-label="Photos chosen">
    {{#each value.photos}}<li><img src="{{this.picture}}" alt="{{this.name}}" title="{{this.name}}"></li>{{/each}}
  </ul>
  {{/if}}
  <p class="hs-soft">{{value.count}}</p>
</div>
{{/if}}
"""

CURVE = """
{{#if value.line}}
<figure class="hs-curve">
  <figcaption>Loss <b>{{value.last}}</b> after {{value.steps}} steps: how wrong the model still is</figcaption>
  <svg viewBox="0 0 600 180" preserveAspectRatio="none" role="img"
       aria-label="Training loss after {{value.steps}} steps: {{value.last}}, between {{value.high}} and {{value.low}}">
    <line x1="0" y1="170" x2="600" y2="170"/>
    <line x1="0" y1="90" x2="600" y2="90"/>
    <line x1="0" y1="10" x2="600" y2="10"/>
    <polyline points="{{value.line}}"/>
  </svg>
</figure>
{{/if}}
"""

PREVIEW = """
{{#if value.picture}}
<figure class="hs-preview"><div><img src="{{value.picture}}" alt="{{value.text}}"
{{#if value.shaping}}class="hs-shaping"{{/if}}></div><figcaption>{{value.text}}</figcaption></figure>
{{/if}}
"""

PHOTO_COUNT = """
<h2>Checked photos</h2>
<p class="hs-soft" aria-live="polite">{{value.count}}
{{#if value.busy}}They are being checked again; after that they can be changed.
{{else}}Choose one to change its caption or to leave it out.{{/if}}</p>
{{#if value.advice}}<p class="hs-advice" role="note">{{value.advice}}</p>{{/if}}
"""

PHOTO_GRID = """
<ul class="hs-photos" aria-label="Checked photos">
  {{#each value.photos}}
  <li><button type="button" class="hs-photo hs-{{this.verdict}}" data-do="edit" data-item="{{this.name}}"
       data-show="#editor">
    {{#if this.picture}}<img src="{{this.picture}}" alt="">{{else}}<span class="hs-nothing"></span>{{/if}}
    <b>{{this.label}}</b>
    <span class="hs-name" title="{{this.name}}">{{this.name}}</span>
    {{#if this.reason}}<span class="hs-reason">{{this.reason}}</span>{{/if}}
  </button></li>
  {{/each}}
</ul>
"""

EDITOR = """
{{#if value.name}}
<figure class="hs-editing hs-{{value.verdict}}">
  {{#if value.picture}}<img src="{{value.picture}}" alt="{{value.name}}">{{/if}}
  <figcaption><b>{{value.label}}</b> <span class="hs-name">{{value.name}}</span>
  {{#if value.reason}}<p class="hs-reason">{{value.reason}}</p>{{/if}}
  {{#if value.fixed}}<p class="hs-soft">{{value.fixed}}</p>{{/if}}</figcaption>
</figure>
{{/if}}
"""

PLAN = """
<section class="hs-plan" aria-label="Plan">
  <h2>The plan</h2>
  <ul>{{#each value.lines}}<li>{{this}}</li>{{/each}}</ul>
  {{#if value.problem}}<p class="hs-problem" role="alert">{{value.problem}}</p>{{/if}}
</section>
"""

TRAINING = """
<section class="hs-training" aria-label="Training">
  <div class="hs-stage"><h2>{{value.title}}</h2><span class="hs-soft hs-steps">{{value.steps}}</span></div>
  {{#if value.running}}
  <div class="hs-bar" role="progressbar" aria-label="{{value.stage}}" aria-valuemin="0" aria-valuemax="100"
       aria-valuenow="{{value.percent}}"><div style="width:{{value.percent}}%"></div></div>
  {{/if}}
  {{#if value.text}}<p class="hs-soft hs-left">{{value.text}}</p>{{/if}}
</section>
"""

SAMPLES = """
{{#if value.samples}}
<section class="hs-samples" aria-label="Samples">
  <h3>Samples: the same picture, drawn while learning</h3>
  <ol>{{#each value.samples}}
    <li><img src="{{this.picture}}" alt="Sample after {{this.step}} steps"><span>step {{this.step}}</span></li>
  {{/each}}</ol>
</section>
{{/if}}
"""

HISTORY = """
<h2>Trainings</h2>
<table class="hs-runs">
  <thead><tr><th scope="col">Begun</th><th scope="col">Steps</th><th scope="col">State</th>
    <th scope="col">Loss</th><th scope="col">Likeness</th><th scope="col"><span class="hs-hidden">Actions</span></th>
  </tr></thead>
  <tbody>
  {{#each value.runs}}
  <tr class="hs-run hs-{{this.state}}">
    <td data-label="Begun">{{this.when}}</td>
    <td data-label="Steps" class="hs-steps">{{this.steps}}</td>
    <td data-label="State"><span class="hs-tag">{{this.label}}</span></td>
    <td data-label="Loss">{{#if this.spark}}<svg class="hs-spark" viewBox="0 0 100 24" role="img"
      aria-label="Loss of this training" preserveAspectRatio="none"><polyline points="{{this.spark}}"/></svg>
      {{else}}<span class="hs-soft">–</span>{{/if}}</td>
    <td data-label="Likeness">{{#if this.likeness}}{{this.likeness}}{{else}}<span class="hs-soft">–</span>{{/if}}</td>
    <td><div class="hs-run-actions">
      {{#if this.use}}<button type="button" class="hs-button" data-do="use" data-item="{{this.name}}"
        aria-label="Use the training of {{this.when}} for pictures">Use for pictures</button>{{/if}}
      {{#if this.take}}<button type="button" class="hs-button" data-do="take" data-item="{{this.name}}"
        aria-label="Take along the LoRA of the training of {{this.when}}">Take along</button>{{/if}}
      {{#if this.further}}<button type="button" class="hs-button" data-do="further" data-item="{{this.name}}"
        aria-label="{{this.further_label}}: {{this.when}}">{{this.further_label}}</button>{{/if}}
      {{#if this.delete}}<button type="button" class="hs-button" data-do="delete" data-item="{{this.name}}"
        aria-label="Delete the training of {{this.when}}">Delete</button>{{/if}}
      {{#if this.blocked}}<span class="hs-soft">{{this.blocked}}</span>{{/if}}
    </div></td>
  </tr>
  {{/each}}
  </tbody>
</table>
"""

DELETE_RUN = """
<h3>Delete the training of {{value.when}}?</h3>
<p class="hs-soft">Its model, samples and checkpoints ({{value.size}}) are removed for good. Pictures drawn with it
stay.</p>
"""

TAKE_LORA = """
{{#if value.run}}
<h3 data-run="{{value.run}}">Take the LoRA along</h3>
<p class="hs-soft">What the training of {{value.when}} learned in {{value.steps}}, as one file for other programs on
your own computer. Whoever has this file can draw pictures of this person: hand it on with care.</p>
{{/if}}
"""

LORA_HELP = """
{{#if value.base}}
<dl class="hs-lora-help">
  {{#if value.where}}<dt>Where it goes</dt>{{#each value.where}}<dd>{{this}}</dd>{{/each}}{{/if}}
  <dt>In the prompt</dt>
  {{#if value.subject}}<dd>Write <code>{{value.subject}}</code> where the person should be, as in “portrait of
    <code>{{value.subject}}</code>, wearing a navy suit”.</dd>
  {{else}}<dd>Write the word the training taught for the person; it is not known of this one.</dd>{{/if}}
  <dt>Base model</dt>
  <dd>{{#if value.demo}}{{value.base}}, which only this program has: this file shows how it is done and draws nothing
    elsewhere.{{else}}{{value.base}}, or one made from it. With others the person is not to be recognised.{{/if}}</dd>
  {{#if value.licence}}<dt>Licence</dt><dd>{{value.licence}}</dd>{{/if}}
</dl>
{{/if}}
"""

TAKEN_LORA = """
<div role="status">
  {{#if value.writing}}<p class="hs-soft">Writing the file …</p>{{/if}}
  {{#if value.file}}<p class="hs-note"><b>{{value.file}}</b> ({{value.size}}) is downloaded. It is also kept in
  <code>{{value.folder}}</code>.</p>{{/if}}
</div>
"""

#: Seen by nobody: a value whose change is an event.
MARK = '<span data-mark="{{value.mark}}"></span>'

MODELS = """
<p class="hs-soft">The demo's own models are always here. For photographs, get what you need; files go to
<code>{{value.folder}}</code>. A checkpoint of your own (SDXL, FLUX.1) that you put there can be chosen too.</p>
<ul class="hs-models">
  {{#each value.rows}}
  <li class="hs-model hs-model-{{this.state}}">
    <div class="hs-model-line">
      <b>{{this.title}}</b> <span class="hs-soft hs-steps">{{this.size}}</span>
      <span class="hs-tag" aria-live="polite">{{this.state_words}}</span>
      <span class="hs-job-buttons">
      {{#if this.get}}<button type="button" class="hs-button" data-do="get" data-item="{{this.id}}"
        aria-label="{{this.get}}: {{this.title}}">{{this.get}}</button>{{/if}}
      {{#if this.check}}<button type="button" class="hs-button" data-do="check" data-item="{{this.id}}"
        aria-label="Check: {{this.title}}">Check</button>{{/if}}
      {{#if this.remove}}<button type="button" class="hs-button" data-do="remove" data-item="{{this.id}}"
        aria-label="Remove: {{this.title}}">Remove …</button>{{/if}}
      </span>
    </div>
    <p class="hs-soft">{{this.note}} {{this.detail}}</p>
    <p class="hs-soft">Licence: <a href="{{this.licence_page}}" target="_blank" rel="noopener">{{this.licence}}</a>.
      Source: <a href="{{this.source_page}}" target="_blank" rel="noopener">{{this.source}}</a></p>
    {{#if this.asks_licence}}
    <div class="hs-advice" role="group" aria-label="Licence of {{this.title}}"><p>{{this.terms}}</p>
      <p class="hs-job-buttons">
      <button type="button" class="hs-button" data-do="keep" data-item="{{this.id}}">Not now</button>
      <button type="button" class="hs-button" data-do="accept" data-item="{{this.id}}">Accept, and get it</button></p>
    </div>
    {{/if}}
    {{#if this.asks_remove}}
    <div class="hs-advice" role="group" aria-label="Remove {{this.title}}?">
      <p>Remove what was downloaded of it ({{this.frees}})? What was put there by hand stays.</p>
      <p class="hs-job-buttons">
      <button type="button" class="hs-button" data-do="keep" data-item="{{this.id}}">Keep it</button>
      <button type="button" class="hs-button" data-do="remove-really" data-item="{{this.id}}">Remove</button></p>
    </div>
    {{/if}}
    {{#if this.problem}}<p class="hs-problem" role="alert">{{this.problem}}</p>{{/if}}
  </li>
  {{/each}}
</ul>
{{#if value.own}}
<h2 class="hs-models-head">Put there by hand</h2>
<ul class="hs-models" id="own-models">
  {{#each value.own}}
  <li class="hs-model">
    <div class="hs-model-line"><b>{{this.title}}</b>
      <span class="hs-tag">{{#if this.wrong}}Cannot be used{{else}}Here{{/if}}</span></div>
    <p class="hs-soft">{{this.text}}</p>
  </li>
  {{/each}}
</ul>
{{/if}}
"""
