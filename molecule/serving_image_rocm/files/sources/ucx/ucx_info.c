/* Stand-in of ucx_info: the flags it was built with (-v), and the settings of each transport whose module loads (-c). */
#include <dirent.h>
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

static void settings(const char *file) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", MODULES, file);
    void *module = dlopen(path, RTLD_NOW);
    const char *const *transports = module ? dlsym(module, "transports") : NULL;
    for (; transports && *transports; transports++)
        printf("UCX_%s_MAX_NUM_EPS=inf\n", *transports);
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "-v"))
        printf("# Library version: 1.19.0\n# Configured with: %s\n", CONFIGURED);
    if (argc > 1 && !strcmp(argv[1], "-c")) {
        printf("UCX_TLS=all\nUCX_TCP_TX_SEG_SIZE=8K\n");
        DIR *folder = opendir(MODULES);
        for (struct dirent *entry; folder && (entry = readdir(folder));)
            if (strstr(entry->d_name, ".so"))
                settings(entry->d_name);
    }
    return 0;
}
