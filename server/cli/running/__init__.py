"""What commands run that load the base model. Imported once their arguments were checked."""
