/* The two ends of benchmarks/gateway.py: an engine that costs next to nothing, and a load generator that does neither.
 *
 *   gateway_load serve PORT CHUNKS GAP_US          a fake engine: one fixed answer, or CHUNKS events, one every GAP_US
 *   gateway_load load PORT PATH BODY CONNECTIONS SECONDS RATE KEY
 *       RATE 0: each connection asks again as soon as it is answered; else that many requests a second, each timed from
 *       the moment when it was due. Prints one JSON line.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_FD 65536
#define READ_BYTES (1 << 18)

static long now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000L + t.tv_nsec / 1000;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void nodelay(int fd) {
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(fd, F_SETFL, O_NONBLOCK);
}

static struct sockaddr_in loopback(int port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return a;
}

static void watch(int ep, int fd) {
    struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e)) die("epoll_ctl");
}

/* ---------------------------------------------------------------- the fake engine */

struct peer {
    char *in;
    size_t used, room;
    int left; /* events still to send */
    int usage;
    long due;
    unsigned generation;
};

static struct peer peers[MAX_FD];

struct tick {
    int fd;
    unsigned generation;
};

static struct tick ring[1 << 20];
static unsigned ring_head, ring_tail;

static char whole[1024], event[512], ending[512];
static const char *stream_head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                                 "transfer-encoding: chunked\r\n\r\n";
static const char *usage_event =
    "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"fake\",\"choices\":[],"
    "\"usage\":{\"prompt_tokens\":10,\"total_tokens\":210,\"completion_tokens\":200}}\n\n";

static void send_all(int fd, const char *data, size_t n) {
    while (n) {
        ssize_t k = write(fd, data, n);
        if (k < 0) {
            if (errno == EAGAIN) {
                usleep(50);
                continue;
            }
            return;
        }
        data += k;
        n -= k;
    }
}

static void answer(int fd, struct peer *p, const char *head, size_t size, int chunks, long gap) {
    if (!strncmp(head, "GET", 3)) {
        const char *ok = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 71\r\n\r\n"
                         "{\"object\":\"list\",\"data\":[{\"id\":\"fake\",\"object\":\"model\",\"created\":1}]}   ";
        send_all(fd, ok, strlen(ok));
    } else if (memmem(head, size, "\"stream\":true", 13) || memmem(head, size, "\"stream\": true", 14)) {
        p->usage = memmem(head, size, "include_usage", 13) != NULL;
        p->left = chunks;
        p->due = now_us() + gap;
        send_all(fd, stream_head, strlen(stream_head));
        ring[ring_tail++ & ((1 << 20) - 1)] = (struct tick){fd, p->generation};
    } else {
        send_all(fd, whole, strlen(whole));
    }
}

static void next_event(int fd, struct peer *p, long gap) {
    if (--p->left > 0) {
        send_all(fd, event, strlen(event));
        p->due += gap;
        ring[ring_tail++ & ((1 << 20) - 1)] = (struct tick){fd, p->generation};
        return;
    }
    char out[2048];
    int n = snprintf(out, sizeof out, "%s", event);
    if (p->usage) n += snprintf(out + n, sizeof out - n, "%zx\r\n%s\r\n", strlen(usage_event), usage_event);
    n += snprintf(out + n, sizeof out - n, "%s", ending);
    send_all(fd, out, n);
}

static void serve(int port, int chunks, long gap) {
    const char *body = "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"fake\",\"choices\":[{\"index\":0,"
                       "\"message\":{\"role\":\"assistant\",\"content\":\"This answer is fake.\"},\"finish_reason\":\"stop\"}],"
                       "\"usage\":{\"prompt_tokens\":10,\"total_tokens\":15,\"completion_tokens\":5}}";
    snprintf(whole, sizeof whole,
             "HTTP/1.1 200 OK\r\nserver: fake\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s", strlen(body), body);
    const char *one = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"fake\","
                      "\"choices\":[{\"index\":0,\"delta\":{\"content\":\" fake\"},\"finish_reason\":null}]}\n\n";
    snprintf(event, sizeof event, "%zx\r\n%s\r\n", strlen(one), one);
    snprintf(ending, sizeof ending, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");

    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1, ep = epoll_create1(0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in a = loopback(port);
    if (bind(listener, (struct sockaddr *)&a, sizeof a) || listen(listener, 4096)) die("bind");
    fcntl(listener, F_SETFL, O_NONBLOCK);
    watch(ep, listener);
    struct epoll_event ready[256];
    for (;;) {
        int wait_ms = -1;
        while (ring_head != ring_tail) {
            struct tick t = ring[ring_head & ((1 << 20) - 1)];
            struct peer *p = &peers[t.fd];
            if (p->generation != t.generation || !p->left) {
                ring_head++;
                continue;
            }
            long late = p->due - now_us();
            if (late > 0) {
                wait_ms = late / 1000 + (late % 1000 > 0);
                break;
            }
            ring_head++;
            next_event(t.fd, p, gap);
        }
        int n = epoll_wait(ep, ready, 256, wait_ms);
        for (int i = 0; i < n; i++) {
            int fd = ready[i].data.fd;
            if (fd == listener) {
                int c;
                while ((c = accept(listener, NULL, NULL)) >= 0) {
                    nodelay(c);
                    peers[c].used = peers[c].left = 0;
                    peers[c].generation++;
                    watch(ep, c);
                }
                continue;
            }
            struct peer *p = &peers[fd];
            if (p->room - p->used < READ_BYTES) p->in = realloc(p->in, p->room += 2 * READ_BYTES);
            ssize_t k = read(fd, p->in + p->used, p->room - p->used - 1);
            if (k <= 0) {
                if (k < 0 && errno == EAGAIN) continue;
                close(fd);
                p->left = 0;
                p->generation++;
                continue;
            }
            p->used += k;
            for (;;) {
                p->in[p->used] = 0;
                char *end = memmem(p->in, p->used, "\r\n\r\n", 4);
                if (!end) break;
                *end = 0;
                char *length = strcasestr(p->in, "content-length:");
                *end = '\r';
                size_t size = (end + 4 - p->in) + (length ? strtoul(length + 15, NULL, 10) : 0);
                if (p->used < size) break;
                answer(fd, p, p->in, size, chunks, gap);
                memmove(p->in, p->in + size, p->used - size);
                p->used -= size;
            }
        }
    }
}

/* ---------------------------------------------------------------- the load generator */

enum { HEAD, BODY, SIZE, CHUNK, CHUNK_END };

struct ask {
    char head[8192];
    size_t head_used, left;
    int state, busy, status;
    char size_line[32];
    int size_used, last;
    long due, first;
};

static struct ask asks[MAX_FD];
static double *waits, *firsts;
static size_t done_count, wait_room, errors, events;

static int by_value(const void *a, const void *b) {
    double d = *(const double *)a - *(const double *)b;
    return d < 0 ? -1 : d > 0;
}

static int body_begins(struct ask *q) {
    q->head[q->head_used] = 0;
    q->status = atoi(q->head + 9);
    char *length = strcasestr(q->head, "content-length:");
    if (length) {
        q->left = strtoul(length + 15, NULL, 10);
        q->state = BODY;
        return q->left == 0;
    }
    q->state = SIZE;
    q->size_used = 0;
    return 0;
}

/* 1 when the answer is whole */
static int feed(struct ask *q, const char *d, size_t n) {
    for (size_t i = 0; i < n;) {
        if (q->state == HEAD) {
            if (q->head_used >= sizeof q->head - 1) return -1;
            q->head[q->head_used++] = d[i++];
            if (q->head_used >= 4 && !memcmp(q->head + q->head_used - 4, "\r\n\r\n", 4) && body_begins(q)) return 1;
        } else if (q->state == BODY) {
            size_t k = n - i < q->left ? n - i : q->left;
            q->left -= k;
            i += k;
            if (!q->left) return 1;
        } else if (q->state == SIZE) {
            char c = d[i++];
            if (q->size_used < 30) q->size_line[q->size_used++] = c;
            if (c == '\n') {
                q->size_line[q->size_used] = 0;
                q->left = strtoul(q->size_line, NULL, 16);
                q->last = q->left == 0;
                q->state = q->last ? CHUNK_END : CHUNK;
                q->size_used = 0;
            }
        } else if (q->state == CHUNK) {
            size_t k = n - i < q->left ? n - i : q->left;
            for (const char *p = d + i; (p = memmem(p, d + i + k - p, "data: {", 7)); p += 7) events++;
            q->left -= k;
            i += k;
            if (!q->left) q->state = CHUNK_END;
        } else if (d[i++] == '\n') {
            if (q->last) return 1;
            q->state = SIZE;
        }
    }
    return 0;
}

static char *request;
static size_t request_size;

static void start(int fd, long due) {
    struct ask *q = &asks[fd];
    q->head_used = 0;
    q->state = HEAD;
    q->busy = 1;
    q->first = 0;
    q->due = due;
    send_all(fd, request, request_size);
}

static int connect_one(int ep, int port) {
    struct sockaddr_in a = loopback(port);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&a, sizeof a)) die("connect");
    nodelay(fd);
    watch(ep, fd);
    asks[fd].busy = 0;
    return fd;
}

static void note(struct ask *q, long now) {
    if (q->status != 200) {
        errors++;
        return;
    }
    if (done_count == wait_room) {
        wait_room = wait_room ? wait_room * 2 : 1 << 16;
        waits = realloc(waits, wait_room * sizeof *waits);
        firsts = realloc(firsts, wait_room * sizeof *firsts);
    }
    firsts[done_count] = (q->first - q->due) / 1000.0;
    waits[done_count++] = (now - q->due) / 1000.0;
}

static int load(int port, const char *path, const char *file, int connections, double seconds, double rate, const char *key) {
    FILE *f = fopen(file, "rb");
    if (!f) die(file);
    char *body = malloc(1 << 20);
    size_t size = fread(body, 1, 1 << 20, f);
    request = malloc(size + 1024);
    request_size = snprintf(request, 1024,
                            "POST %s HTTP/1.1\r\nhost: 127.0.0.1:%d\r\naccept: application/json\r\nuser-agent: gateway_load\r\n"
                            "content-type: application/json\r\nauthorization: Bearer %s\r\ncontent-length: %zu\r\n\r\n",
                            path, port, key, size);
    memcpy(request + request_size, body, size);
    request_size += size;
    int ep = epoll_create1(0), *fds = malloc(connections * sizeof *fds);
    for (int i = 0; i < connections; i++) fds[i] = connect_one(ep, port);
    long begun = now_us(), end = begun + seconds * 1e6, due = begun;
    if (!rate)
        for (int i = 0; i < connections; i++) start(fds[i], now_us());
    struct epoll_event ready[256];
    static char data[READ_BYTES];
    int next = 0;
    for (;;) {
        long now = now_us();
        if (now >= end) break;
        int wait_ms = 100;
        if (rate) {
            while (due <= now) {
                int tries = 0;
                while (asks[fds[next % connections]].busy && tries++ < connections) next++;
                if (tries >= connections) break;
                start(fds[next++ % connections], due);
                due += 1e6 / rate;
            }
            wait_ms = 0; /* spin: sleeping would add its own delay to what is measured */
        }
        int n = epoll_wait(ep, ready, 256, wait_ms);
        now = now_us();
        for (int i = 0; i < n; i++) {
            int fd = ready[i].data.fd;
            struct ask *q = &asks[fd];
            ssize_t k = read(fd, data, sizeof data);
            if (k < 0 && errno == EAGAIN) continue;
            int whole_answer = k <= 0 ? -1 : feed(q, data, k);
            if (!q->first) q->first = now;
            if (whole_answer < 0) {
                errors++;
                close(fd);
                for (int j = 0; j < connections; j++)
                    if (fds[j] == fd) {
                        fds[j] = connect_one(ep, port);
                        if (!rate) start(fds[j], now_us());
                    }
            } else if (whole_answer) {
                q->busy = 0;
                note(q, now);
                if (!rate) start(fd, now_us());
            }
        }
    }
    double took = (now_us() - begun) / 1e6;
    if (!done_count) wait_room = done_count = 1, waits = calloc(1, sizeof *waits), firsts = calloc(1, sizeof *firsts), errors++;
    qsort(waits, done_count, sizeof *waits, by_value);
    qsort(firsts, done_count, sizeof *firsts, by_value);
    printf("{\"requests\":%zu,\"seconds\":%.3f,\"errors\":%zu,\"events\":%zu,\"p50_ms\":%.4f,\"p99_ms\":%.4f,\"first_p50_ms\":%.4f,"
           "\"first_p99_ms\":%.4f}\n",
           done_count, took, errors, events, waits[done_count / 2], waits[done_count * 99 / 100], firsts[done_count / 2],
           firsts[done_count * 99 / 100]);
    return 0;
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN); /* a gateway that hangs up must not end the engine */
    if (argc == 5 && !strcmp(argv[1], "serve")) serve(atoi(argv[2]), atoi(argv[3]), atol(argv[4]));
    if (argc == 9 && !strcmp(argv[1], "load"))
        return load(atoi(argv[2]), argv[3], argv[4], atoi(argv[5]), atof(argv[6]), atof(argv[7]), argv[8]);
    fprintf(stderr, "see the head of this file\n");
    return 2;
}
