/* A slow line between two network namespaces, for kernels without netem: packets from interface A to interface B wait
 * and are dropped at random; those from B to A pass at once. So a round trip takes one delay.
 *
 *     cc -O2 slow_line.c -o slow_line && ./slow_line pbA pbB 20 1
 *
 * It prints "ready" when both interfaces exist; the caller gives them addresses and moves B to its namespace. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define SLOTS 65536
#define PACKET 1600

static struct { double due; int length; char data[PACKET]; } *line;

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec * 1e-9;
}

static int open_tun(const char *name) {
    struct ifreq request;
    memset(&request, 0, sizeof request);
    int file = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    request.ifr_flags = IFF_TUN | IFF_NO_PI;
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (file < 0 || ioctl(file, TUNSETIFF, &request) < 0) {
        perror(name);
        exit(1);
    }
    return file;
}

int main(int count, char **words) {
    if (count != 5) return 2;
    int a = open_tun(words[1]), b = open_tun(words[2]);
    double delay = atof(words[3]) / 1000, loss = atof(words[4]) / 100;
    unsigned head = 0, tail = 0;
    char packet[PACKET];
    line = malloc(sizeof *line * SLOTS);
    srandom(1);
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct pollfd files[2] = {{a, POLLIN, 0}, {b, POLLIN, 0}};
        double wait = tail == head ? 1 : line[tail % SLOTS].due - now();
        struct timespec limit = {wait > 1 ? 1 : 0, wait <= 0 ? 0 : wait >= 1 ? 0 : (long)(wait * 1e9)};
        ppoll(files, 2, &limit, NULL);
        for (int burst = 0; burst < 64; burst++) {
            if (head - tail == SLOTS) break;
            int length = read(a, line[head % SLOTS].data, PACKET);
            if (length <= 0) break;
            if (random() < loss * RAND_MAX) continue;
            line[head % SLOTS].length = length;
            line[head % SLOTS].due = now() + delay;
            head++;
        }
        for (int burst = 0; burst < 64; burst++) {
            int length = read(b, packet, PACKET);
            if (length <= 0) break;
            if (write(a, packet, length) < 0) continue;
        }
        double at = now();
        while (tail != head && line[tail % SLOTS].due <= at) {
            if (write(b, line[tail % SLOTS].data, line[tail % SLOTS].length) < 0) break;
            tail++;
        }
    }
}
