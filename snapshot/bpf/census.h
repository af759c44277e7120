/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What the census program answers with. `src/census/record.rs` declares the same structures; their sizes are
 * compared when the program is loaded and every offset by a test.
 *
 * Every structure is a multiple of eight bytes long and has no hidden padding, so that bytes can be compared.
 */
#ifndef REWIND_CENSUS_H
#define REWIND_CENSUS_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed int s32;
typedef signed long long s64;

/* Calls that may run at the same time. */
#define SLOTS 8
/* The room of one call. A container that does not fit is looked at without the census. */
#define PROCESSES 16
#define THREADS 256
#define FILES 512
#define INTERESTS 256
#define MAPPINGS 4096
/* Descriptors of one process; higher ones make the table 'not proven'. */
#define DESCRIPTORS 1024
/* Processors in an affinity mask. */
#define PROCESSORS 1024
#define GROUPS 32
#define CHILDREN 4
#define KEYS 16

/* Areas, as in `src/census/areas.rs`. */
#define LAYOUT 1
#define DESCRIPTOR_TABLE 2
#define ATTRIBUTES 4
#define THREAD_ATTRIBUTES 8
#define LIMITS 16
#define IDENTITY 32
#define PLACE 64
#define IPC 128

/* Kinds of open files. OTHER: nothing is known of its state, look from outside. */
enum { OTHER, PLAIN, DEVICE, PIPE, SOCKET, EVENT_COUNTER, EPOLL, TIMER, SIGNAL_MASK, PIDFD, KINDS };

/* The question, written by user space, and what concerns the whole call. */
struct call {
	u32 processes;
	/* Processors that there can be. */
	u32 processors;
	/* From a run queue to the event counters of its processor, and to its batches of pages; 0: unknown. */
	u64 events;
	u64 batches;
	/* The bits of a thread's flags that are compared. */
	u64 flags;
	/* Pid descriptors of the caller. */
	s32 pidfds[PROCESSES];
	/* Sequences of the address spaces at which their mappings are known. */
	u64 sequences[PROCESSES];
	/* Addresses of the operations of each kind that has its own. */
	u64 operations[KINDS];
	/* Answers. */
	u32 threads;
	u32 files;
	u32 interests;
	u32 mappings;
	u32 has_lazy_frees;
	/* Entries of batches not worked off yet, if they belong to the memory group of the first process. */
	u32 pending;
	/* Pages marked MADV_FREE since the machine was started, as far as the kernel has counted them. */
	u64 lazy_frees;
};

struct layout {
	u64 mm;
	u64 execs;
	u64 brk;
	u64 start_brk;
	u64 start_stack;
	u64 code[2];
	u64 data[2];
	u64 arguments[2];
	u64 environment[2];
	u64 total;
	u64 locked;
	u64 pinned;
	u64 data_pages;
	u64 exec_pages;
	u64 stack_pages;
	u64 default_flags;
	u64 count;
};

struct attributes {
	u64 actions[64 * 4];
	u64 pending;
	u64 flags;
	u64 timers[8];
	u64 terminal;
	u32 umask;
	u32 membarrier;
	u32 subreaper;
	u32 pad;
};

struct limits {
	u64 resources[32];
	u64 flags;
	s32 oom_score;
	s32 oom_score_least;
};

struct place {
	u64 root_mount;
	u64 root;
	u64 directory_mount;
	u64 directory;
	u64 executable;
	u64 executable_inode;
	u64 mounts;
	u64 mounts_event;
};

struct ipc {
	u64 space;
	u32 in_use[3];
	u32 queues;
};

struct process {
	/* A read failed or something did not fit: nothing here is proven. */
	u32 failed;
	/* Areas of which something cannot be proven unchanged. */
	u32 unproven;
	u32 first_thread;
	u32 threads;
	u32 first_file;
	u32 files;
	u32 first_interest;
	u32 interests;
	/* Not compared: bytes of page tables. */
	u64 tables;
	/* Of the address space: counts changes. */
	u64 sequence;
	u32 pid;
	/* All mappings were listed, and each can be compared. */
	u32 listed;
	u32 first_mapping;
	u32 mappings;
	struct layout layout;
	struct attributes attributes;
	struct limits limits;
	struct place place;
	struct ipc ipc;
};

/* What a thread does just now; not compared. */
struct activity {
	u64 switches;
	u32 state;
	u32 on_processor;
	u32 queued;
	u32 pad;
};

struct thread_attributes {
	u64 pending;
	u64 stack;
	u64 stack_size;
	u32 stack_flags;
	u32 death_signal;
	u64 slack;
	u64 clear_tid;
	u64 robust;
	u64 rseq;
	u32 rseq_len;
	u32 rseq_signature;
	u64 dispatch[4];
	u64 flags;
	u64 ring;
	u32 personality;
	u32 memory_failure;
	u32 children;
	u32 tracees;
	u32 child[CHILDREN];
	u64 credentials;
	u64 session_keyring;
	u32 session_serial;
	u32 session_keys;
	u32 session_key[KEYS];
	u8 name[16];
};

struct schedule {
	u64 allowed[PROCESSORS / 64];
	u64 deadline[3];
	u64 slice;
	u64 clamps;
	u32 deadline_flags;
	u32 policy;
	u32 nice;
	u32 priority;
	u32 reset_on_fork;
	u32 io_priority;
};

struct identity {
	u64 credentials;
	u64 real_credentials;
	u32 ids[8];
	u32 secure_bits;
	u32 groups;
	u64 capabilities[5];
	u64 users;
	u32 group[GROUPS];
	u64 namespaces;
	u32 namespace[8];
	u64 filter;
	u32 filter_mode;
	u32 filters;
	u64 task_flags;
	u32 parent;
	u32 process_group;
	u32 session;
	/* It does not share descriptors (1) or directories (2) with its process. */
	u32 own_tables;
	u64 features;
	u64 numa_group;
};

struct thread {
	u32 tid;
	u32 unproven;
	u64 started;
	struct activity activity;
	struct thread_attributes attributes;
	struct schedule schedule;
	struct identity identity;
};

struct open_file {
	u32 fd;
	u32 close_on_exec;
	u64 file;
	u32 kind;
	u32 flags;
	u64 owner;
	u64 owner_pid;
	u32 owner_signal;
	u32 locks;
	u64 state[6];
};

struct mapping {
	u64 start;
	u64 end;
	u64 flags;
	u64 offset;
	u64 inode;
	u64 operations;
	u64 data;
};

struct interest {
	u64 epoll;
	u64 file;
	u64 data;
	u32 fd;
	u32 events;
};

#endif
