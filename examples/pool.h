/* pool.h - a worker pool for moe.h's moe_parallel: C11 atomics and POSIX threads, nothing else

   Do this:

       pool p;
       pool_start(&p, 4, NULL);                      // the calling thread and up to 3 more
       moe_parallel parallel = pool_parallel(&p);
       io.parallel = &parallel, io.n_tasks = p.n_workers;
       moe_forward(&layer, &io);                     // any number of layers and calls
       pool_stop(&p);

   Compiled with -std=c11, define _POSIX_C_SOURCE as 200809L before the first include (or _GNU_SOURCE, which pinning
   needs).

   How it works. A job is one 64-bit word: its number in the high half, its tasks not yet taken in the low half. A
   worker takes a task by decrementing the word; the number keeps a late worker from taking one of a job that it did
   not look at. The caller takes tasks too, and waits only for tasks that somebody is running: a worker which the
   system has put aside between two jobs costs nothing but its help. Waiting is spinning for a while (decoding a
   token starts a job every few microseconds), then sleeping on a condition variable: an idle pool uses no processor
   time, and where there are more workers than processors nobody spins. What different threads write at different
   times lies on different cache lines. */

#ifndef POOL_H
#define POOL_H

#include "moe.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define POOL_LINE 128 /* two cache lines: processors fetch them in pairs */

typedef struct pool_options { /* all zero is the usual */
    uint32_t spin_us;         /* how long to spin before sleeping; 0 = 100; UINT32_MAX = not at all */
    uint32_t pin; /* 1: worker i stays on the i-th processor this process may use (Linux with _GNU_SOURCE) */
} pool_options;

typedef struct pool {
    /* set by pool_start */
    uint32_t n_workers; /* with the caller; less than asked for where threads could not be made */
    uint64_t spin_ns;
    pthread_t *threads; /* [n_workers - 1] */
    pthread_mutex_t lock;
    pthread_cond_t work, idle; /* there is a job; the last task has ended */

    /* the job: written by the caller while no task is taken */
    _Alignas(POOL_LINE) void (*task)(void *arg, uint32_t i);
    void *arg;
    uint32_t n_tasks;

    _Alignas(POOL_LINE) _Atomic uint64_t job;        /* number << 32 | tasks not taken */
    _Alignas(POOL_LINE) _Atomic uint32_t unfinished; /* tasks that have not ended */
    _Alignas(POOL_LINE) _Atomic uint32_t sleepers;   /* workers asleep; changed under lock */
    _Atomic uint32_t caller_sleeps, busy, stop;
} pool;

/* Starts workers; the pool must not be moved afterwards. Returns the number of workers, at least 1 (the caller). */
static inline uint32_t pool_start(pool *p, uint32_t n_workers, const pool_options *options);
static inline void pool_stop(pool *p);
static inline moe_parallel pool_parallel(pool *p);
/* A moe_parallel.run. A call from inside a task, or while another thread's job runs, is done by the calling
   thread alone. */
static inline void pool_run(void *user, uint32_t n, void (*task)(void *arg, uint32_t i), void *arg);

/* ---- Waiting ------------------------------------------------------------------------------------------------- */

static inline void pool_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

static inline uint64_t pool_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static inline int pool_has_work(pool *p) { return (uint32_t)atomic_load(&p->job) != 0 || atomic_load(&p->stop); }
static inline int pool_has_ended(pool *p) { return atomic_load(&p->unfinished) == 0; }

/* 1 as soon as the condition holds, 0 if it does not within the time to spin. Time in which the system ran
   something else on this processor does not count: who comes back to a busy pool must not fall asleep at once. */
static inline int pool_spin(pool *p, int (*holds)(pool *p)) {
    uint64_t spun = 0, last;
    if (holds(p)) return 1;
    if (!p->spin_ns) return 0;
    for (last = pool_now_ns(); spun < p->spin_ns;) {
        for (int i = 0; i < 32; i++) { /* the clock costs as much as a few pauses: look at it now and then */
            pool_pause();
            if (holds(p)) return 1;
        }
        uint64_t now = pool_now_ns(), gone = now - last;
        spun += gone < 10000 ? gone : 10000;
        last = now;
    }
    return 0;
}

/* Who sleeps says so before it looks a last time, who changes something looks for sleepers afterwards: with
   sequentially consistent atomics (the default of C11) one of them sees the other. */
static inline void pool_wait_for_work(pool *p) {
    if (pool_spin(p, pool_has_work)) return;
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->sleepers, 1);
    /* Once: who is woken spins again, even if it came too late for this job. */
    if (!pool_has_work(p)) pthread_cond_wait(&p->work, &p->lock);
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->lock);
}

static inline void pool_wait_for_end(pool *p) {
    if (pool_spin(p, pool_has_ended)) return;
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->caller_sleeps, 1);
    while (!pool_has_ended(p)) pthread_cond_wait(&p->idle, &p->lock);
    atomic_store(&p->caller_sleeps, 0);
    pthread_mutex_unlock(&p->lock);
}

static inline void pool_wake(pool *p, uint32_t n) {
    uint32_t asleep = atomic_load(&p->sleepers);
    if (!asleep) return;
    pthread_mutex_lock(&p->lock);
    for (n = n < asleep ? n : asleep; n; n--) pthread_cond_signal(&p->work);
    pthread_mutex_unlock(&p->lock);
}

/* ---- Working ------------------------------------------------------------------------------------------------- */

/* Runs tasks until none is left to take. Who has taken a task keeps the job from ending, so its fields are stable. */
static inline void pool_work(pool *p) {
    uint64_t job = atomic_load(&p->job);
    while ((uint32_t)job) {
        if (!atomic_compare_exchange_weak(&p->job, &job, job - 1)) continue; /* job is now what is there */
        p->task(p->arg, p->n_tasks - (uint32_t)job);
        if (atomic_fetch_sub(&p->unfinished, 1) == 1 && atomic_load(&p->caller_sleeps)) {
            pthread_mutex_lock(&p->lock);
            pthread_cond_signal(&p->idle);
            pthread_mutex_unlock(&p->lock);
        }
        job = atomic_load(&p->job);
    }
}

static inline void *pool_worker(void *arg) {
    pool *p = (pool *)arg;
    while (!atomic_load(&p->stop)) {
        pool_work(p);
        pool_wait_for_work(p);
    }
    return NULL;
}

static inline void pool_run(void *user, uint32_t n, void (*task)(void *arg, uint32_t i), void *arg) {
    pool *p = (pool *)user;
    if (p->n_workers < 2 || n < 2 || atomic_exchange(&p->busy, 1)) {
        for (uint32_t i = 0; i < n; i++) task(arg, i);
        return;
    }
    p->task = task, p->arg = arg, p->n_tasks = n;
    atomic_store(&p->unfinished, n);
    atomic_store(&p->job, ((atomic_load(&p->job) >> 32) + 1) << 32 | n);
    pool_wake(p, n - 1);
    pool_work(p);
    pool_wait_for_end(p);
    atomic_store(&p->busy, 0);
}

static inline moe_parallel pool_parallel(pool *p) {
    moe_parallel parallel = {pool_run, p};
    return parallel;
}

/* ---- Start and stop ------------------------------------------------------------------------------------------ */

static inline void pool_pin(pthread_t thread, uint32_t i) {
#if defined(__linux__) && defined(_GNU_SOURCE)
    cpu_set_t may, one;
    if (sched_getaffinity(0, sizeof may, &may)) return;
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET((size_t)cpu, &may) && !i--) {
            CPU_SET((size_t)cpu, &one);
            pthread_setaffinity_np(thread, sizeof one, &one); /* a wish: no harm if it fails */
            return;
        }
#else
    (void)thread, (void)i;
#endif
}

static inline uint32_t pool_start(pool *p, uint32_t n_workers, const pool_options *options) {
    pool_options o = {0, 0};
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    if (options) o = *options;
    p->spin_ns = (uint64_t)(o.spin_us ? o.spin_us : 100) * 1000;
    if (o.spin_us == UINT32_MAX || (processors > 0 && n_workers > (unsigned long)processors)) p->spin_ns = 0;
    p->task = NULL, p->arg = NULL, p->n_tasks = 0;
    atomic_init(&p->job, 0);
    atomic_init(&p->unfinished, 0);
    atomic_init(&p->sleepers, 0);
    atomic_init(&p->caller_sleeps, 0);
    atomic_init(&p->busy, 0);
    atomic_init(&p->stop, 0);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_cond_init(&p->idle, NULL);
    p->n_workers = 1;
    p->threads = n_workers > 1 ? (pthread_t *)malloc((n_workers - 1) * sizeof *p->threads) : NULL;
    for (uint32_t n = 0; p->threads && n + 1 < n_workers; n++) {
        if (pthread_create(&p->threads[n], NULL, pool_worker, p)) break; /* fewer will do */
        if (o.pin) pool_pin(p->threads[n], n + 1);
        p->n_workers = n + 2; /* only this thread reads it */
    }
    return p->n_workers;
}

static inline void pool_stop(pool *p) {
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->stop, 1);
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (uint32_t i = 0; i + 1 < p->n_workers; i++) pthread_join(p->threads[i], NULL);
    free(p->threads);
    pthread_cond_destroy(&p->idle);
    pthread_cond_destroy(&p->work);
    pthread_mutex_destroy(&p->lock);
}

#endif
