/* A library that answers as NVML does, from a file of recorded values, for the tests of cloud.node_gpus.

   The file that FAKE_NVML names has a line "GPU FUNCTION[.ARGUMENT] VALUE [VALUE...]" for what a call about that
   GPU gives, "* FUNCTION CODE" for a call that fails with that code, and "- hang" for a driver that does not come
   back. It is read anew by each call. Written from the API reference of NVML; none of NVIDIA's code is in it. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long long u64;

static int told_xids; /* how many of the listed events were given already */

static int look(const char *gpu, const char *name, char *found, size_t room) {
  FILE *file = fopen(getenv("FAKE_NVML") ? getenv("FAKE_NVML") : "", "r");
  char line[512], whose[32], what[128];
  int offset, hit = 0;
  if (!file) return 0;
  while (fgets(line, sizeof line, file)) {
    if (sscanf(line, "%31s %127s %n", whose, what, &offset) < 2) continue;
    if (!strcmp(whose, "-") && !strcmp(what, "hang")) {
      fclose(file);
      for (;;) sleep(1000);
    }
    if (strcmp(whose, gpu) || strcmp(what, name)) continue;
    snprintf(found, room, "%s", line + offset);
    found[strcspn(found, "\n")] = 0;
    hit = 1;
  }
  fclose(file);
  return hit;
}

static int fails(const char *name) {
  char found[512];
  return look("*", name, found, sizeof found) ? atoi(found) : 0;
}

static int given(void *device, const char *name, char *found, size_t room) {
  char gpu[32];
  int code = fails(name);
  if (code) return code;
  snprintf(gpu, sizeof gpu, "%ld", (long)device - 1);
  if (look(gpu, "state", found, room)) return atoi(found);
  return look(gpu, name, found, room) ? 0 : 3; /* NVML_ERROR_NOT_SUPPORTED */
}

#define NUMBER(function, type)                                        \
  int function(void *device, type *value) {                           \
    char found[512];                                                  \
    int code = given(device, #function, found, sizeof found);         \
    if (!code) *value = (type)strtoull(found, 0, 0);                  \
    return code;                                                      \
  }

#define NUMBER_OF(function, type)                                     \
  int function(void *device, int which, type *value) {                \
    char found[512], name[128];                                       \
    int code;                                                         \
    snprintf(name, sizeof name, "%s.%d", #function, which);           \
    code = given(device, name, found, sizeof found);                  \
    if (!code) *value = (type)strtoull(found, 0, 0);                  \
    return code;                                                      \
  }

#define TEXT(function)                                                \
  int function(void *device, char *text, unsigned room) {             \
    return given(device, #function, text, room);                      \
  }

int nvmlInit_v2(void) { return fails("nvmlInit_v2"); }

int nvmlDeviceGetCount_v2(unsigned *count) {
  char found[512];
  int code = fails("nvmlDeviceGetCount_v2");
  *count = !code && look("-", "count", found, sizeof found) ? atoi(found) : 0;
  return code;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
  char gpu[32], found[512];
  snprintf(gpu, sizeof gpu, "%u", index);
  *device = (void *)(long)(index + 1);
  return look(gpu, "handle", found, sizeof found) ? atoi(found) : 0;
}

TEXT(nvmlDeviceGetName)
TEXT(nvmlDeviceGetUUID)
NUMBER_OF(nvmlDeviceGetTemperature, unsigned)
NUMBER(nvmlDeviceGetPowerUsage, unsigned)
NUMBER(nvmlDeviceGetEnforcedPowerLimit, unsigned)
NUMBER_OF(nvmlDeviceGetClockInfo, unsigned)
NUMBER_OF(nvmlDeviceGetMaxClockInfo, unsigned)
NUMBER(nvmlDeviceGetCurrentClocksThrottleReasons, u64)
NUMBER(nvmlDeviceGetRetiredPagesPendingStatus, unsigned)

int nvmlDeviceGetUtilizationRates(void *device, unsigned *rates) {
  char found[512];
  int code = given(device, "nvmlDeviceGetUtilizationRates", found, sizeof found);
  if (!code) sscanf(found, "%u %u", &rates[0], &rates[1]);
  return code;
}

int nvmlDeviceGetMemoryInfo(void *device, u64 *memory) {
  char found[512];
  int code = given(device, "nvmlDeviceGetMemoryInfo", found, sizeof found);
  if (!code) sscanf(found, "%llu %llu %llu", &memory[0], &memory[1], &memory[2]);
  return code;
}

int nvmlDeviceGetRemappedRows(void *device, unsigned *corr, unsigned *unc, unsigned *pending, unsigned *failed) {
  char found[512];
  int code = given(device, "nvmlDeviceGetRemappedRows", found, sizeof found);
  if (!code) sscanf(found, "%u %u %u %u", corr, unc, pending, failed);
  return code;
}

int nvmlDeviceGetTotalEccErrors(void *device, int type, int counter, u64 *count) {
  char found[512], name[128];
  int code;
  snprintf(name, sizeof name, "nvmlDeviceGetTotalEccErrors.%d.%d", type, counter);
  code = given(device, name, found, sizeof found);
  if (!code) *count = strtoull(found, 0, 0);
  return code;
}

int nvmlEventSetCreate(void **set) {
  *set = (void *)1;
  return fails("nvmlEventSetCreate");
}

int nvmlDeviceRegisterEvents(void *device, u64 types, void *set) {
  return device && set && types == 8 ? 0 : 2; /* NVML_ERROR_INVALID_ARGUMENT */
}

struct event {
  void *device;
  u64 kind, data;
  unsigned gpu_instance, compute_instance;
};

int nvmlEventSetWait_v2(void *set, struct event *event, unsigned wait) {
  char found[512], *next = found;
  int skip = told_xids;
  (void)wait;
  if (!set || !look("-", "xids", found, sizeof found)) return 10; /* NVML_ERROR_TIMEOUT */
  for (; skip && next; skip--) next = (next = strchr(next, ' ')) ? next + 1 : 0;
  if (!next || !*next) return 10;
  told_xids++;
  event->device = (void *)1, event->kind = 8, event->data = strtoull(next, 0, 0);
  return 0;
}
