"""The Textual app and the `awq-tui` command."""
