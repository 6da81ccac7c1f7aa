const char *const transports[] = {"RC_VERBS", "RC_MLX5", "UD_VERBS", 0};
