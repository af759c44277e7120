/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The parts of the kernel's structures that the census reads. Offsets are those of the running kernel: the
 * loader fills them in by name (CO-RE), so a member stands here only with its name and width. A structure that
 * changed its shape has a second declaration (`___` and a word, which the loader ignores).
 */
#ifndef REWIND_KERNEL_H
#define REWIND_KERNEL_H

/* For the loader's headers. */
typedef u8 __u8;
typedef u16 __u16;
typedef u32 __u32;
typedef u64 __u64;
typedef s32 __s32;
typedef s64 __s64;
typedef u16 __be16;
typedef u32 __be32;
typedef u32 __wsum;

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct list_head { struct list_head *next, *prev; };
struct hlist_node { struct hlist_node *next; };
struct hlist_head { struct hlist_node *first; };
struct rb_node { unsigned long __rb_parent_color; struct rb_node *rb_right, *rb_left; };
struct rb_root { struct rb_node *rb_node; };
struct rb_root_cached { struct rb_root rb_root; };

typedef struct { u64 sig[1]; } sigset_t;
struct sigpending { struct list_head list; sigset_t signal; };
typedef struct { s32 counter; } atomic_t;
typedef struct { s64 counter; } atomic64_t;
typedef struct { u32 val; } kuid_t;
typedef struct { u32 val; } kgid_t;
typedef struct { u64 val; } kernel_cap_t;
typedef struct { u32 sequence; } seqcount_t;

struct vfsmount;
struct dentry;
struct path { struct vfsmount *mnt; struct dentry *dentry; };

struct super_block { u64 s_magic; };
struct file_lock_context { struct list_head flc_flock, flc_posix, flc_lease; };
struct page;
struct pipe_buffer { struct page *page; u32 offset, len; };
struct pipe_inode_info { u32 head, tail, max_usage; struct pipe_buffer *bufs; u32 ring_size; };
struct inode {
	u16 i_mode;
	struct super_block *i_sb;
	struct file_lock_context *i_flctx;
	struct pipe_inode_info *i_pipe;
	void *i_private;
};
struct pid;
struct fown_struct { struct pid *pid; s32 signum; };
struct file {
	const void *f_op;
	void *private_data;
	struct inode *f_inode;
	u32 f_flags;
	s64 f_pos;
	struct fown_struct *f_owner;
};
/* Before Linux 6.12. */
struct file___embedded { struct fown_struct f_owner; };

struct fdtable { u32 max_fds; struct file **fd; unsigned long *close_on_exec, *open_fds; };
struct files_struct { struct fdtable *fdt; };
struct fs_struct { s32 umask; struct path root, pwd; };

struct upid { s32 nr; };
struct pid { u32 level; struct hlist_head tasks[4]; struct upid numbers[1]; };

struct mempolicy;
struct anon_vma_name;
struct vm_area_struct {
	u64 vm_start, vm_end, vm_flags, vm_pgoff;
	const void *vm_ops;
	struct file *vm_file;
	void *vm_private_data;
	struct mempolicy *vm_policy;
	struct anon_vma_name *anon_name;
};
struct maple_tree { void *ma_root; };
struct maple_range_64 { u64 pivot[15]; void *slot[16]; };
struct maple_arange_64 { u64 pivot[9]; void *slot[10]; };

struct mm_struct {
	struct maple_tree mm_mt;
	atomic_t membarrier_state;
	atomic64_t pgtables_bytes;
	s32 map_count;
	seqcount_t mm_lock_seq;
	u64 total_vm, locked_vm, data_vm, exec_vm, stack_vm, def_flags;
	atomic64_t pinned_vm;
	u64 start_code, end_code, start_data, end_data, start_brk, brk, start_stack;
	u64 arg_start, arg_end, env_start, env_end;
	u64 flags;
	struct file *exe_file;
};
/* Before Linux 6.13. */
struct mm_struct___counter { s32 mm_lock_seq; };
/* From Linux 6.18 on. */
typedef struct { u64 __mm_flags[1]; } mm_flags_t;
struct mm_struct___bitmap { mm_flags_t flags; };

struct hrtimer { u8 state; };
struct cpu_itimer { u64 expires, incr; };
struct rlimit { u64 rlim_cur, rlim_max; };
struct tty_struct;
struct signal_struct {
	s32 nr_threads;
	struct list_head thread_head;
	struct sigpending shared_pending;
	u32 is_child_subreaper : 1;
	struct hlist_head posix_timers;
	struct hrtimer real_timer;
	s64 it_real_incr;
	struct cpu_itimer it[2];
	struct pid *pids[4];
	struct tty_struct *tty;
	struct rlimit rlim[16];
	short oom_score_adj, oom_score_adj_min;
};
struct k_sigaction { u64 words[4]; };
struct sighand_struct { struct k_sigaction action[64]; };

struct ns_common { u32 inum; };
struct user_namespace { struct ns_common ns; };
struct uts_namespace { struct ns_common ns; };
struct ipc_ids { s32 in_use; };
struct ipc_namespace { struct ipc_ids ids[3]; u32 mq_queues_count; struct ns_common ns; };
struct mnt_namespace { struct ns_common ns; u64 event; };
struct pid_namespace { struct ns_common ns; };
struct net { struct ns_common ns; };
struct time_namespace { struct ns_common ns; };
struct cgroup_namespace { struct ns_common ns; };
struct nsproxy {
	struct uts_namespace *uts_ns;
	struct ipc_namespace *ipc_ns;
	struct mnt_namespace *mnt_ns;
	struct pid_namespace *pid_ns_for_children;
	struct net *net_ns;
	struct time_namespace *time_ns, *time_ns_for_children;
	struct cgroup_namespace *cgroup_ns;
};

struct group_info { s32 ngroups; kgid_t gid[1]; };
struct assoc_array_ptr;
struct assoc_array_node { struct assoc_array_ptr *slots[16]; };
struct assoc_array { struct assoc_array_ptr *root; u64 nr_leaves_on_tree; };
struct key { s32 serial; struct assoc_array keys; };
struct cred {
	kuid_t uid, suid, euid, fsuid;
	kgid_t gid, sgid, egid, fsgid;
	u32 securebits;
	kernel_cap_t cap_inheritable, cap_permitted, cap_effective, cap_bset, cap_ambient;
	struct key *session_keyring, *process_keyring, *thread_keyring;
	struct user_namespace *user_ns;
	struct group_info *group_info;
};

struct seccomp_filter;
struct seccomp { s32 mode; atomic_t filter_count; struct seccomp_filter *filter; };
struct thread_info { u64 flags, syscall_work; };
struct syscall_user_dispatch { char *selector; u64 offset, len; };
struct thread_struct { u64 features, features_locked; };
struct sched_entity { u64 slice; u8 custom_slice; };
struct sched_dl_entity { u64 dl_runtime, dl_deadline, dl_period; u32 flags; };
typedef struct { u64 bits[1]; } cpumask_t;
struct io_context { u16 ioprio; };
struct io_uring_task;
struct numa_group;
struct rseq;
struct robust_list_head;
struct uclamp_se { u32 value; };
struct task_struct {
	struct thread_info thread_info;
	u32 __state;
	u32 flags;
	s32 on_cpu, on_rq;
	s32 static_prio;
	u32 rt_priority;
	struct sched_entity se;
	struct sched_dl_entity dl;
	struct task_group *sched_task_group;
	struct uclamp_se uclamp_req[2];
	u32 policy;
	cpumask_t cpus_mask;
	struct mm_struct *mm;
	s32 exit_state;
	s32 pdeath_signal;
	u32 personality;
	u32 sched_reset_on_fork : 1;
	u64 atomic_flags;
	s32 pid, tgid;
	struct task_struct *real_parent;
	struct list_head children, sibling, ptraced;
	struct pid *thread_pid;
	struct hlist_node pid_links[4];
	struct list_head thread_node;
	s32 *clear_child_tid;
	u64 nvcsw, nivcsw;
	u64 start_boottime;
	struct cred *real_cred, *cred;
	char comm[16];
	struct fs_struct *fs;
	struct files_struct *files;
	struct io_uring_task *io_uring;
	struct nsproxy *nsproxy;
	struct signal_struct *signal;
	struct sighand_struct *sighand;
	struct sigpending pending;
	u64 sas_ss_sp, sas_ss_size;
	u32 sas_ss_flags;
	struct seccomp seccomp;
	struct syscall_user_dispatch syscall_dispatch;
	u64 self_exec_id;
	struct io_context *io_context;
	struct robust_list_head *robust_list;
	struct mempolicy *mempolicy;
	struct numa_group *numa_group;
	struct css_set *cgroups;
	struct rseq *rseq;
	u32 rseq_len, rseq_sig;
	u64 timer_slack_ns;
	struct thread_struct thread;
};

struct eventfd_ctx { u64 count; };
struct signalfd_ctx { sigset_t sigmask; };
struct timerfd_ctx {
	union { struct hrtimer tmr; } t;
	s64 tintv;
	u64 ticks;
	s32 clockid;
	u16 expired, settime_flags;
};
struct epoll_filefd { struct file *file; s32 fd; } __attribute__((packed));
struct epoll_event { u32 events; u64 data; } __attribute__((packed));
struct epitem { struct rb_node rbn; struct epoll_filefd ffd; struct epoll_event event; };
struct eventpoll { struct rb_root_cached rbr; };

struct rq;
struct cfs_rq { struct rq *rq; };
struct folio { u64 memcg_data; };
struct folio_batch { u8 nr; struct folio *folios[31]; };
struct cpu_fbatches { struct folio_batch lru_lazyfree; };
struct cgroup_subsys_state;
struct css_set { struct cgroup_subsys_state *subsys[1]; };
struct task_group { struct cfs_rq **cfs_rq; };

#pragma clang attribute pop

enum cgroup_subsys_id { memory_cgrp_id = 0x7fff };
enum vm_event_item { PGLAZYFREE = 0x7fff };
enum syscall_work_bit {
	SYSCALL_WORK_BIT_SECCOMP = 0x7ffe,
	SYSCALL_WORK_BIT_SYSCALL_USER_DISPATCH = 0x7fff,
};

#endif
