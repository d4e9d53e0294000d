"""Tests of eval/text_search/."""
