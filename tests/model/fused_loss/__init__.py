"""Tests of model/fused_loss/."""
