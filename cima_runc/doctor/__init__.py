"""What :mod:`cima_runc.cli.doctor` looks at on a host, a module for each concern."""
