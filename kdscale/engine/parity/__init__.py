"""One recipe under every back-end of a machine, cut short and compared."""
