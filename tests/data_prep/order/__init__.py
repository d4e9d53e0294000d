"""Tests of data_prep/order/: which tokens each step reads."""
