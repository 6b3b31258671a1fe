"""HTML of the page's own parts. Values go in through ``{{…}}`` only, which escapes them.

Gradio fills these in the browser (Handlebars) and changes only what differs, so nothing flickers.
"""

from __future__ import annotations

HEADER = """
<header class="hs-header">
  <h1>Headshots</h1>
  <p>Drop about twelve photos of yourself and get professional headshots.
     <span class="hs-private">Everything happens on this computer.</span></p>
</header>
"""

HOW = """
<aside class="hs-how" aria-label="How it works">
  <h2>How it works</h2>
  <ol>
    <li><b>Your photos are checked.</b> Each one is cropped to head and shoulders; what cannot be used is named
        with the reason.</li>
    <li><b>The model learns your face.</b> You see the loss, samples and the time left, and can cancel at any time.</li>
    <li><b>Headshots are drawn and ranked</b> by how much they look like you.</li>
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

PROBLEM = '{{#if value.text}}<p class="hs-problem" role="alert">{{value.text}}</p>{{/if}}'

NOTE = '{{#if value.text}}<p class="hs-note">{{value.text}}</p>{{/if}}'

CHOSEN = """
{{#if value.photos}}
<div class="hs-chosen">
  <ul aria-label="Photos chosen">
    {{#each value.photos}}<li><img src="{{this.picture}}" alt="{{this.name}}" title="{{this.name}}"></li>{{/each}}
  </ul>
  <p class="hs-soft">{{value.count}}</p>
</div>
{{/if}}
"""

PROGRESS = """
<section class="hs-progress hs-{{value.state}}" aria-label="Progress">
  {{#if value.past}}<ol class="hs-past">{{#each value.past}}<li>{{this}}</li>{{/each}}</ol>{{/if}}
  <div class="hs-stage">
    <h2 aria-live="polite">{{value.stage}}</h2>
    <span class="hs-soft hs-steps">{{value.steps}}</span>
  </div>
  {{#if value.error}}<p class="hs-problem" role="alert">{{value.error}}</p>{{/if}}
  {{#if value.running}}
  <div class="hs-bar" role="progressbar" aria-label="{{value.stage}}" aria-valuemin="0" aria-valuemax="100"
       aria-valuenow="{{value.percent}}"><div style="width:{{value.percent}}%"></div></div>
  {{/if}}
  <p class="hs-soft hs-left">{{value.left}}</p>
</section>
"""

CURVE = """
{{#if value.line}}
<figure class="hs-curve">
  <figcaption>Loss <b>{{value.last}}</b>: how wrong the model still is</figcaption>
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

PHOTOS = """
{{#if value.photos}}
<section class="hs-photos" aria-label="Your photos">
  <h2>Your photos</h2>
  <p class="hs-soft">{{value.count}}</p>
  <ul>
    {{#each value.photos}}
    <li class="hs-{{this.verdict}}">
      {{#if this.picture}}<img src="{{this.picture}}" alt="">{{else}}<div class="hs-nothing"></div>{{/if}}
      <b>{{this.label}}</b>
      <span class="hs-name">{{this.name}}</span>
      {{#if this.reason}}<span class="hs-reason">{{this.reason}}</span>{{/if}}
    </li>
    {{/each}}
  </ul>
</section>
{{/if}}
"""

RESULTS = """
<section aria-label="Results">
  <h2>Your headshots</h2>
  <p>{{value.summary}}</p>
  <p class="hs-soft">100 % likeness means: as alike as your own photos are to each other. Made with AI; say so where it
     matters. All files: <code>{{value.folder}}</code></p>
</section>
"""

EARLIER = """
<section aria-label="Earlier headshots"><h2>Earlier headshots</h2>
<p class="hs-soft">Found on this computer. Click one to see all its pictures.</p></section>
"""

SHEET = """
{{#if value.picture}}
<details class="hs-sheet"><summary>Contact sheet</summary>
<img src="{{value.picture}}" alt="Photos given, pictures before training and the ranked headshots">
</details>
{{/if}}
"""
