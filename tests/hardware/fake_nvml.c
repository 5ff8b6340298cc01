/* A stand-in for libnvidia-ml.so.1 that answers from a text file, for the real pynvml to load.
 *
 * FAKE_NVML names the file; it is read at every question, so that answers may change while it is used.
 * A line is `<device> <key> <answer>`. <device> is a number, "0m1" for MIG instance 1 of device 0, or
 * "-" for the driver. An answer "!N" is NVML's error N; no line at all is NVML_ERROR_NOT_SUPPORTED.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SUCCESS 0
#define INVALID_ARGUMENT 2
#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define MAX_DEVICES 16

typedef struct { char id[8]; } Device;

static Device devices[MAX_DEVICES][MAX_DEVICES + 1];

static int ask(const char *id, const char *key, char *answer, unsigned size)
{
    char line[512], want[64];
    FILE *file = fopen(getenv("FAKE_NVML"), "r");
    int length = snprintf(want, sizeof want, "%s %s ", id, key);
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        if (strncmp(line, want, length) == 0) {
            fclose(file);
            if (line[length] == '!')
                return atoi(line + length + 1);
            snprintf(answer, size, "%s", line + length);
            return SUCCESS;
        }
    }
    if (file)
        fclose(file);
    return NOT_SUPPORTED;
}

static int ask_number(const char *id, const char *key, unsigned long long *number)
{
    char answer[64];
    int status = ask(id, key, answer, sizeof answer);
    if (status == SUCCESS)
        *number = strtoull(answer, NULL, 10);
    return status;
}

static int ask_unsigned(const Device *device, const char *key, unsigned *number)
{
    unsigned long long wide = 0;
    int status = ask_number(device->id, key, &wide);
    if (status == SUCCESS)
        *number = (unsigned)wide;
    return status;
}

static Device *named(unsigned device, unsigned instance)
{
    Device *found = &devices[device][instance];
    if (instance == MAX_DEVICES)
        snprintf(found->id, sizeof found->id, "%u", device);
    else
        snprintf(found->id, sizeof found->id, "%um%u", device, instance);
    return found;
}

int nvmlInitWithFlags(unsigned flags)
{
    char answer[8];
    int status = ask("-", "init", answer, sizeof answer);
    (void)flags;
    return status == NOT_SUPPORTED ? SUCCESS : status;
}

int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int status)
{
    static char text[32];
    snprintf(text, sizeof text, "fake error %d", status);
    return text;
}

int nvmlSystemGetDriverVersion(char *version, unsigned size) { return ask("-", "driver", version, size); }

int nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    unsigned long long wide = 0;
    int status = ask_number("-", "cuda", &wide);
    *version = (int)wide;
    return status;
}

int nvmlDeviceGetCount_v2(unsigned *count)
{
    unsigned long long wide = 0;
    int status = ask_number("-", "count", &wide);
    *count = (unsigned)wide;
    return status;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **device)
{
    char answer[8];
    int status;
    if (index >= MAX_DEVICES)
        return INVALID_ARGUMENT;
    *device = named(index, MAX_DEVICES);
    status = ask((*device)->id, "handle", answer, sizeof answer);
    return status == NOT_SUPPORTED ? SUCCESS : status;
}

int nvmlDeviceGetName(Device *device, char *name, unsigned size) { return ask(device->id, "name", name, size); }

int nvmlDeviceGetUUID(Device *device, char *uuid, unsigned size) { return ask(device->id, "uuid", uuid, size); }

int nvmlDeviceGetMemoryInfo(Device *device, unsigned long long memory[3])
{
    int status = ask_number(device->id, "memory_total", &memory[0]);
    if (status == SUCCESS)
        status = ask_number(device->id, "memory_used", &memory[2]);
    memory[1] = memory[0] - memory[2];
    return status;
}

int nvmlDeviceGetCudaComputeCapability(Device *device, int *major, int *minor)
{
    char answer[16];
    int status = ask(device->id, "compute_capability", answer, sizeof answer);
    if (status == SUCCESS && sscanf(answer, "%d.%d", major, minor) != 2)
        return INVALID_ARGUMENT;
    return status;
}

int nvmlDeviceGetTemperature(Device *device, int sensor, unsigned *celsius)
{
    (void)sensor;
    return ask_unsigned(device, "temperature", celsius);
}

int nvmlDeviceGetTemperatureThreshold(Device *device, int threshold, unsigned *celsius)
{
    return threshold == 1 ? ask_unsigned(device, "temperature_slowdown", celsius) : NOT_SUPPORTED;
}

int nvmlDeviceGetPowerUsage(Device *device, unsigned *mw) { return ask_unsigned(device, "power_mw", mw); }

int nvmlDeviceGetEnforcedPowerLimit(Device *device, unsigned *mw)
{
    return ask_unsigned(device, "power_limit_mw", mw);
}

int nvmlDeviceGetUtilizationRates(Device *device, unsigned rates[2])
{
    rates[1] = 0;
    return ask_unsigned(device, "utilization", &rates[0]);
}

int nvmlDeviceGetClockInfo(Device *device, int clock, unsigned *mhz)
{
    return clock == 1 ? ask_unsigned(device, "sm_clock_mhz", mhz) : NOT_SUPPORTED;
}

int nvmlDeviceGetCurrentClocksEventReasons(Device *device, unsigned long long *reasons)
{
    return ask_number(device->id, "throttle_reasons", reasons);
}

int nvmlDeviceGetMigMode(Device *device, unsigned *current, unsigned *pending)
{
    int status = ask_unsigned(device, "mig", current);
    *pending = *current;
    return status;
}

int nvmlDeviceGetMaxMigDeviceCount(Device *device, unsigned *count)
{
    return ask_unsigned(device, "mig_slots", count);
}

int nvmlDeviceGetMigDeviceHandleByIndex(Device *device, unsigned index, Device **instance)
{
    char answer[128];
    if (index >= MAX_DEVICES)
        return INVALID_ARGUMENT;
    *instance = named((unsigned)atoi(device->id), index);
    return ask((*instance)->id, "name", answer, sizeof answer) == SUCCESS ? SUCCESS : NOT_FOUND;
}
