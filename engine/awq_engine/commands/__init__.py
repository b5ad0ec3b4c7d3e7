"""What each `awq-tui` command does; one module per family, imported only when it is asked for."""
