"""Drop the live-code scripts that the theme adds to every page: twice, which is a console error, and from a CDN."""


def _drop(app, page, template, context, doctree):
    def live(script):
        attributes = getattr(script, "attributes", {})
        return "thebe" in f"{getattr(script, 'filename', '')}{attributes.get('body', '')}".lower()

    context["script_files"] = [script for script in context.get("script_files", []) if not live(script)]


def setup(app):
    """Connect after the theme has added its scripts."""
    app.connect("html-page-context", _drop, priority=900)
    return {"parallel_read_safe": True}
