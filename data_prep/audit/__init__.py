"""What a run was trained on, proved from its records: windows of each step, documents of each
window."""
