/* Android's C library in terms of glibc, as far as TFLite's library for Android asks for it: it runs on this machine's
 * Java then. tests/bionic.py makes names.h and the trampolines, through which everything goes that both libraries have
 * alike. For tests: what it computes counts, its time means nothing. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "names.h"

extern void *slot_0;
extern void *real_dlopen(const char *, int);
extern void *real_dlsym(void *, const char *);
__asm__(".symver real_dlopen,dlopen@GLIBC_2.34");
__asm__(".symver real_dlsym,dlsym@GLIBC_2.34");

/* bionic's FILE is another structure: its three standard ones lie in an array. */
struct { char bytes[152]; } __sF[3];
void *stderr, *stdout, *stdin;

static void *libc, *libm;
static int (*g_vfprintf)(void *, const char *, va_list);
static size_t (*g_fwrite)(const void *, size_t, size_t, void *);
static size_t (*g_fread)(void *, size_t, size_t, void *);
static int (*g_fputc)(int, void *), (*g_fflush)(void *), (*g_fclose)(void *), (*g_fileno)(void *);
static int (*g_fseek)(void *, long, int);
static long (*g_ftell)(void *);
static long (*g_sysconf)(int);

static void *find(const char *name) {
    void *found = real_dlsym(libc, name);
    return found ? found : real_dlsym(libm, name);
}

static void missing(void) {
    static const char text[] = "bionic: a function was called that is not there\n";
    write(2, text, sizeof text - 1);
    abort();
}

__attribute__((constructor)) static void start(void) {
    libc = real_dlopen("libc.so.6", RTLD_NOW);
    libm = real_dlopen("libm.so.6", RTLD_NOW);
    void **slot = &slot_0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        slot[i] = find(names[i]);
        if (!slot[i]) slot[i] = (void *)missing;
    }
    stderr = *(void **)find("stderr");
    stdout = *(void **)find("stdout");
    stdin = *(void **)find("stdin");
    g_vfprintf = find("vfprintf");
    g_fwrite = find("fwrite");
    g_fread = find("fread");
    g_fputc = find("fputc");
    g_fflush = find("fflush");
    g_fclose = find("fclose");
    g_fileno = find("fileno");
    g_fseek = find("fseeko");
    g_ftell = find("ftello");
    g_sysconf = find("sysconf");
}

static void *real(void *file) {
    ptrdiff_t at = (char *)file - (char *)__sF;
    if (at < 0 || at >= (ptrdiff_t)sizeof __sF) return file;
    return at / 152 == 0 ? stdin : at / 152 == 1 ? stdout : stderr;
}

int vfprintf(void *file, const char *format, va_list values) { return g_vfprintf(real(file), format, values); }
int fprintf(void *file, const char *format, ...) {
    va_list values;
    va_start(values, format);
    int count = g_vfprintf(real(file), format, values);
    va_end(values);
    return count;
}
int fputc(int c, void *file) { return g_fputc(c, real(file)); }
int putc(int c, void *file) { return g_fputc(c, real(file)); }
int fputs(const char *text, void *file) { return (int)g_fwrite(text, 1, strlen(text), real(file)); }
size_t fwrite(const void *from, size_t size, size_t count, void *file) { return g_fwrite(from, size, count, real(file)); }
size_t fread(void *to, size_t size, size_t count, void *file) { return g_fread(to, size, count, real(file)); }
int fflush(void *file) { return g_fflush(file ? real(file) : 0); }
int fclose(void *file) { return g_fclose(real(file)); }
int fileno(void *file) { return g_fileno(real(file)); }
int fseek(void *file, long offset, int whence) { return g_fseek(real(file), offset, whence); }
int fseeko(void *file, long offset, int whence) { return g_fseek(real(file), offset, whence); }
long ftello(void *file) { return g_ftell(real(file)); }

int *__errno(void) { return __errno_location(); }
size_t __strlen_chk(const char *text, size_t size) { return strlen(text); }
char *__strchr_chk(const char *text, int c, size_t size) { return strchr(text, c); }
char *__strrchr_chk(const char *text, int c, size_t size) { return strrchr(text, c); }
ssize_t __write_chk(int fd, const void *from, size_t count, size_t size) { return write(fd, from, count); }
ssize_t __read_chk(int fd, void *to, size_t count, size_t size) { return read(fd, to, count); }
int __open_2(const char *path, int flags) { return ((int (*)(const char *, int, ...))find("open"))(path, flags); }
char *__gnu_strerror_r(int error, char *to, size_t size) {
    return ((char *(*)(int, char *, size_t))find("strerror_r"))(error, to, size);
}
void __gcov_dump(void) {}
void __gcov_flush(void) {}

/* XNNPACK stays off, without a word, where the version is below 20. */
int __system_property_get(const char *name, char *to) {
    strcpy(to, strcmp(name, "ro.build.version.sdk") ? "" : "34");
    return (int)strlen(to);
}
void android_set_abort_message(const char *text) { g_fwrite(text, 1, strlen(text), stderr); }
int __android_log_vprint(int priority, const char *tag, const char *format, va_list values) {
    if (priority >= 4) {
        fprintf(stderr, "%s: ", tag);
        g_vfprintf(stderr, format, values);
        g_fputc('\n', stderr);
    }
    return 1;
}
int __android_log_print(int priority, const char *tag, const char *format, ...) {
    va_list values;
    va_start(values, format);
    __android_log_vprint(priority, tag, format, values);
    va_end(values);
    return 1;
}
int __android_log_write(int priority, const char *tag, const char *text) {
    fprintf(stderr, "%s: %s\n", tag, text);
    return 1;
}

/* bionic's numbers -> glibc's */
long sysconf(int name) {
    switch (name) {
        case 0x27: case 0x28: return g_sysconf(30); /* page size */
        case 0x60: return g_sysconf(83);            /* processors configured */
        case 0x61: return g_sysconf(84);            /* online */
        case 0x62: return g_sysconf(85);            /* pages of memory */
        case 0x63: return g_sysconf(86);
        case 0x06: return g_sysconf(2);             /* clock ticks */
        case 0x04: return g_sysconf(0);             /* arguments */
    }
    if (name >= 0x94 && name <= 0xa5) return g_sysconf(185 + name - 0x94); /* caches */
    errno = EINVAL;
    return -1;
}

/* bionic looks for RTLD_DEFAULT in the caller's own library too. */
void *dlsym(void *handle, const char *name) {
    void *found = real_dlsym(handle, name);
    if (!found && !handle) {
        Dl_info info;
        int (*where)(const void *, Dl_info *) = find("dladdr");
        if (where(__builtin_return_address(0), &info))
            found = real_dlsym(real_dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD), name);
    }
    return found;
}

char bionic_LIBC, bionic_LIBC_N, bionic_LIBC_O, bionic_LIBC_P, bionic_LIBC_Q, bionic_LIBC_R;
