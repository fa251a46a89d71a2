"""Entry points: what a user runs from the command line. The libraries are smoljax and data_beam."""
