static int print_models(void) { return 0; }
