"""Tests over several parts."""
