"""The page. The only package that imports gradio, and it never imports torch."""
