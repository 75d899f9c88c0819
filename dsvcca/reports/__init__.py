"""Results as one page that needs nothing else: numbers packed into text, figures by Bokeh, a template."""
