"""The settings files of container engines, edited so that cima-runc is one of their runtimes."""
