"""Which data a run was trained on: from its records to windows and documents."""
