/* The limit for fan-out: accepts connections, answers each GET with an event stream, and writes what is posted to all.
 *
 * It does nothing that a server must do besides: no parsing worth the name, no slow clients, no time-outs. A reader
 * that does not keep up ends it.
 *
 *     cc -O2 -o send_loop send_loop.c && ./send_loop PORT
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST = 65536, REQUEST = 65536, TURN = 256 };

static const char HEAD[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n"
                           "Transfer-Encoding: chunked\r\n\r\n3\r\n:\n\n\r\n";
static const char DONE[] = "HTTP/1.1 204 No Content\r\n\r\n";

static int readers[MOST], reader_count, poll_fd;
static unsigned long number;

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static int listen_on(int port) {
  int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 4096)) fail("listen");
  return fd;
}

static void watch(int fd) {
  struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
  if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event)) fail("epoll_ctl");
}

static void forget(int fd) {
  for (int i = 0; i < reader_count; i++)
    if (readers[i] == fd) readers[i--] = readers[--reader_count];
  close(fd);
}

static void accept_one(int listener) {
  int one = 1, fd = accept(listener, 0, 0);
  if (fd < 0) fail("accept");
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  watch(fd);
}

/* One event, framed once, to every reader. */
static void publish(const char *body, int size) {
  static char event[REQUEST + 64], chunk[REQUEST + 128];
  int event_size = snprintf(event, sizeof event, "id: %lu\ndata: %.*s\n\n", ++number, size, body);
  int chunk_size = snprintf(chunk, sizeof chunk, "%x\r\n%s\r\n", event_size, event);
  for (int i = 0; i < reader_count; i++)
    if (send(readers[i], chunk, chunk_size, MSG_DONTWAIT | MSG_NOSIGNAL) != chunk_size) fail("send");
}

/* A request is taken to come in one piece; -1 when it has not. */
static int answer(int fd, char *request, int size) {
  char *body = memmem(request, size, "\r\n\r\n", 4);
  if (!body) return -1;
  if (!memcmp(request, "GET ", 4)) {
    if (reader_count == MOST) return -1;
    readers[reader_count++] = fd;
    return send(fd, HEAD, sizeof HEAD - 1, MSG_NOSIGNAL) == sizeof HEAD - 1 ? 0 : -1;
  }
  const char *length = strcasestr(request, "content-length:");
  int wanted = length ? atoi(length + 15) : -1;
  if (request + size - (body + 4) != wanted) return -1;
  publish(body + 4, wanted);
  return send(fd, DONE, sizeof DONE - 1, MSG_NOSIGNAL) == sizeof DONE - 1 ? 0 : -1;
}

static void serve(int fd) {
  static char request[REQUEST + 1];
  int size = recv(fd, request, REQUEST, MSG_DONTWAIT);
  request[size > 0 ? size : 0] = 0;
  if (size <= 0 || answer(fd, request, size)) forget(fd);
}

int main(int count, char **arguments) {
  if (count != 2) return fprintf(stderr, "usage: send_loop PORT\n"), 2;
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  int listener = listen_on(atoi(arguments[1]));
  poll_fd = epoll_create1(0);
  watch(listener);
  for (;;) {
    struct epoll_event ready[TURN];
    int found = epoll_wait(poll_fd, ready, TURN, -1);
    for (int i = 0; i < found; i++) {
      if (ready[i].data.fd == listener) accept_one(listener);
      else serve(ready[i].data.fd);
    }
  }
}
