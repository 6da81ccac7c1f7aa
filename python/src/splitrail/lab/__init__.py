"""The lab: machines made on this host, so that everything else has hosts to change."""
