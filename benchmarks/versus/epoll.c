/* The limit: one thread, epoll, HTTP/1.1 keep-alive, and the MLP 30-64-32-2 computed on the spot.
 *
 * It reads the floats of a JSON or binary Open Inference Protocol request and answers in the same form. It checks
 * nothing that it need not check to answer the benchmark's own requests, so no real server can be faster by much.
 * usage: epoll PORT WEIGHTS, where WEIGHTS holds w1 b1 w2 b2 w3 b3 as little-endian floats.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { INPUTS = 30, FIRST = 64, SECOND = 32, OUTPUTS = 2, MAX_DESCRIPTORS = 16384, BUFFER = 16384 };

static struct {
    float w1[INPUTS][FIRST], b1[FIRST], w2[FIRST][SECOND], b2[SECOND], w3[SECOND][OUTPUTS], b3[OUTPUTS];
} net;

/* What a connection has sent and not yet had answered. */
struct connection {
    size_t used;
    char bytes[BUFFER + 1]; /* one more for a terminating zero */
};

static struct connection *connections[MAX_DESCRIPTORS];

static void infer(const float *input, float *output) {
    float first[FIRST], second[SECOND];
    memcpy(first, net.b1, sizeof first);
    for (int i = 0; i < INPUTS; i++)
        for (int j = 0; j < FIRST; j++) first[j] += input[i] * net.w1[i][j];
    memcpy(second, net.b2, sizeof second);
    for (int i = 0; i < FIRST; i++) {
        float value = first[i] > 0 ? first[i] : 0;
        for (int j = 0; j < SECOND; j++) second[j] += value * net.w2[i][j];
    }
    memcpy(output, net.b3, sizeof net.b3);
    for (int i = 0; i < SECOND; i++) {
        float value = second[i] > 0 ? second[i] : 0;
        for (int j = 0; j < OUTPUTS; j++) output[j] += value * net.w3[i][j];
    }
}

/* Reads a decimal number without locale, hexadecimal or rounding to the last bit. */
static const char *read_number(const char *at, float *number) {
    static const double POWERS[] = {1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15};
    int negative = *at == '-', decimals = 0, exponent = 0;
    long digits = 0;
    at += negative;
    for (; *at >= '0' && *at <= '9'; at++) digits = digits * 10 + (*at - '0');
    if (*at == '.')
        for (at++; *at >= '0' && *at <= '9'; at++, decimals++)
            if (decimals < 15) digits = digits * 10 + (*at - '0');
    if (decimals > 15) decimals = 15;
    if (*at == 'e' || *at == 'E') exponent = (int)strtol(at + 1, (char **)&at, 10);
    double value = digits / POWERS[decimals];
    for (; exponent > 0; exponent--) value *= 10;
    for (; exponent < 0; exponent++) value /= 10;
    *number = (float)(negative ? -value : value);
    return at;
}

/* Reads the numbers after "data":[ and says whether there were enough of them. */
static int read_data(const char *body, float *input) {
    const char *at = strstr(body, "\"data\"");
    if (!at) return 0;
    int count = 0;
    for (at += 6; *at && count < INPUTS; at++)
        if (*at == '-' || (*at >= '0' && *at <= '9')) at = read_number(at, &input[count++]) - 1;
    return count == INPUTS;
}

static size_t write_answer(char *out, const char *type, long head_length, const char *body, size_t length) {
    size_t used = (size_t)sprintf(out, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %zu\r\n", type, length);
    if (head_length) used += (size_t)sprintf(out + used, "Inference-Header-Content-Length: %ld\r\n", head_length);
    used += (size_t)sprintf(out + used, "\r\n");
    memcpy(out + used, body, length);
    return used + length;
}

/* Answers one request whose head and body are complete; returns the answer's length, 0 to hang up. */
static size_t answer(const char *head, const char *body, size_t length, long head_length, char *out) {
    static const char *NAMES = "{\"model_name\":\"mlp\",\"model_version\":\"1\",\"outputs\":[{\"name\":\"output\","
                               "\"datatype\":\"FP32\",\"shape\":[1,2],";
    float input[INPUTS], output[OUTPUTS];
    char text[512];
    if (!strncmp(head, "GET ", 4)) return write_answer(out, "application/json", 0, "{}", 2);
    if (head_length > 0) {
        if (length != (size_t)head_length + sizeof input) return 0;
        memcpy(input, body + head_length, sizeof input);
        infer(input, output);
        int used = sprintf(text, "%s\"parameters\":{\"binary_data_size\":%zu}}]}", NAMES, sizeof output);
        memcpy(text + used, output, sizeof output);
        return write_answer(out, "application/octet-stream", used, text, (size_t)used + sizeof output);
    }
    if (!read_data(body, input)) return 0;
    infer(input, output);
    int used = sprintf(text, "%s\"data\":[%.9g,%.9g]}]}", NAMES, output[0], output[1]);
    return write_answer(out, "application/json", 0, text, (size_t)used);
}

/* Finds a header's number in the head that ends at `end`; -1 if it is not there. */
static long header(const char *head, const char *end, const char *name) {
    size_t length = strlen(name);
    for (const char *line = head; line && line < end; line = memchr(line, '\n', (size_t)(end - line))) {
        if (*line == '\n') line++;
        if (!strncasecmp(line, name, length)) return strtol(line + length, NULL, 10);
    }
    return -1;
}

static int send_all(int descriptor, const char *bytes, size_t length) {
    while (length) {
        ssize_t sent = send(descriptor, bytes, length, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) continue;
        if (sent <= 0) return 0;
        bytes += sent;
        length -= (size_t)sent;
    }
    return 1;
}

/* Answers every complete request in the buffer; returns 0 when the connection is to be closed. */
static int serve(int descriptor, struct connection *c) {
    char out[1024];
    size_t done = 0;
    for (;;) {
        c->bytes[c->used] = 0;
        char *head = c->bytes + done;
        char *end = memmem(head, c->used - done, "\r\n\r\n", 4);
        if (!end) break;
        long length = header(head, end, "content-length:");
        if (length < 0) length = 0;
        char *body = end + 4;
        if (body + length > c->bytes + c->used) break;
        char after = body[length];
        body[length] = 0;
        size_t size = answer(head, body, (size_t)length, header(head, end, "inference-header-content-length:"), out);
        body[length] = after;
        if (!size || !send_all(descriptor, out, size)) return 0;
        done = (size_t)(body + length - c->bytes);
    }
    memmove(c->bytes, c->bytes + done, c->used - done);
    c->used -= done;
    return c->used < BUFFER;
}

static int receive(int descriptor) {
    struct connection *c = connections[descriptor];
    ssize_t got = recv(descriptor, c->bytes + c->used, BUFFER - c->used, 0);
    if (got < 0) return errno == EAGAIN;
    if (got == 0) return 0;
    c->used += (size_t)got;
    return serve(descriptor, c);
}

static void admit(int listener, int epoll) {
    int descriptor, yes = 1;
    while ((descriptor = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct connection *c = descriptor < MAX_DESCRIPTORS ? calloc(1, sizeof *c) : NULL;
        struct epoll_event event = {.events = EPOLLIN, .data.fd = descriptor};
        if (!c || epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, &event)) {
            free(c);
            close(descriptor);
            continue;
        }
        setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        connections[descriptor] = c;
    }
}

static int die(const char *what) {
    perror(what);
    return 1;
}

int main(int count, char **arguments) {
    if (count != 3) return fprintf(stderr, "usage: epoll PORT WEIGHTS\n"), 2;
    FILE *weights = fopen(arguments[2], "rb");
    if (!weights || fread(&net, sizeof net, 1, weights) != 1) return die("weights");
    fclose(weights);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), yes = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(arguments[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024)) return die("listen");
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[256];
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event)) return die("epoll");
    for (;;) {
        int ready = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            int descriptor = events[i].data.fd;
            if (descriptor == listener) {
                admit(listener, epoll);
            } else if (!receive(descriptor)) {
                free(connections[descriptor]);
                close(descriptor);
            }
        }
    }
}
