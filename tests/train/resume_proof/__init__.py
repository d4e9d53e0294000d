"""Tests of train/resume_proof/."""
