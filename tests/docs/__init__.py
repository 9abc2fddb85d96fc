"""Tests of the documentation: its commands, the messages it quotes, its reference pages, the site."""
