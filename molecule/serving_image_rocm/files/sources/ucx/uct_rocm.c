const char *const transports[] = {"ROCM_COPY", "ROCM_IPC", 0};
