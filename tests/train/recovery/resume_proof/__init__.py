"""Tests of train/recovery/resume_proof/."""
