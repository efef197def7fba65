/* For WASI, which has no threads: none can be made, so a pool has its caller alone, which never waits. */
#ifndef WASM_PTHREAD_H
#define WASM_PTHREAD_H

typedef int pthread_mutex_t, pthread_cond_t;
typedef void *pthread_t;
static inline int pthread_create(pthread_t *thread, const void *attributes, void *(*body)(void *), void *arg) {
    (void)thread, (void)attributes, (void)body, (void)arg;
    return 1;
}
static inline int pthread_join(pthread_t thread, void **result) { return (void)thread, (void)result, 1; }
static inline int pthread_mutex_init(pthread_mutex_t *m, const void *attributes) { return (void)attributes, *m = 0; }
static inline int pthread_mutex_lock(pthread_mutex_t *m) { return *m = 1, 0; }
static inline int pthread_mutex_unlock(pthread_mutex_t *m) { return *m = 0; }
static inline int pthread_mutex_destroy(pthread_mutex_t *m) { return *m = 0; }
static inline int pthread_cond_init(pthread_cond_t *c, const void *attributes) { return (void)attributes, *c = 0; }
static inline int pthread_cond_wait(pthread_cond_t *c, pthread_mutex_t *m) { return (void)c, (void)m, 1; }
static inline int pthread_cond_signal(pthread_cond_t *c) { return *c = 0; }
static inline int pthread_cond_broadcast(pthread_cond_t *c) { return *c = 0; }
static inline int pthread_cond_destroy(pthread_cond_t *c) { return *c = 0; }

#endif
