"""Which data a run was trained on, from its own records: steps to windows, windows to documents."""
