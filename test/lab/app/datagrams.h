/* Of test/lab/app/datagrams.c: each is a command of the lab's application. */
#pragma once

int serve_datagrams(int count, char **words);
int ask_datagram(const char *ip, const char *port, const char *from_port, int wait_ms);
int look_up(const char *server, const char *port, const char *name, int wait_ms);
int count_datagrams(const char *ip, const char *port, long count, int bytes, int interval_us, int segmented);
