"""The documents as a site: what mkdocs builds from docs/, the READMEs and the code (mkdocs.yml)."""
