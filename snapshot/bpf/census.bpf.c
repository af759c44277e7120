// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * Reads what the kernel knows of some processes in one call (BPF_PROG_RUN), without stopping anything and
 * without changing anything. User space compares the answer with an earlier one, see `src/census/mod.rs`.
 *
 * The processes are named by pid descriptors of the caller, so they cannot be others that got their numbers.
 * Every read goes through bpf_probe_read_kernel: a pointer that is stale by now gives an error or nonsense, never
 * a crash; an error makes the whole process 'not proven'. No task of the processes may run meanwhile, or the
 * lists would change under our feet.
 */
#include "census.h"
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

/* The helpers that read kernel memory are for programs under the GPL only. */
char LICENSE[] SEC("license") = "GPL";

#define MAP(name, record, entries)              \
	struct {                                \
		__uint(type, 2); /* ARRAY */    \
		__uint(map_flags, 1 << 10);     \
		__uint(max_entries, entries);   \
		__type(key, u32);               \
		__type(value, struct record);   \
	} name SEC(".maps")

MAP(calls, call, SLOTS);
MAP(processes, process, SLOTS * PROCESSES);
MAP(threads, thread, SLOTS * THREADS);
MAP(files, open_file, SLOTS * FILES);
MAP(interests, interest, SLOTS * INTERESTS);
MAP(mappings, mapping, SLOTS * MAPPINGS);

/* Nodes of the tree of mappings from the root to a leaf: ten mappings a node, so this is for 10^8. */
#define DEPTH 8

struct level {
	/* Addresses of the last values covered and of the children. */
	u64 pivots, slots;
	/* The last value that the node covers. */
	u64 max;
	u32 leaf;
	/* Values in the array of pivots; the next child. */
	u32 count, next;
};

/*
 * Where a call stands. In a map, since the verifier does not follow what is in one: on the stack, each condition
 * would double what it has to look at.
 */
struct cursor {
	u64 failed;
	u32 slot;
	u32 unproven;
	/* Records given away so far. */
	u32 threads, files, interests, mappings;
	/* Level of the pid namespace in which the caller counts. */
	u32 level;
	u32 words;
	/* Of `struct call`. */
	u64 flags;
	/* The process. */
	struct task_struct *leader;
	struct file **table;
	unsigned long *open, *close;
	u64 bits, close_bits;
	/* The list, tree and so on that is being walked. */
	void *head, *at;
	u64 sum;
	u32 from;
	u32 depth;
	u32 listed;
	u32 pending;
	/* The memory group of the first process. */
	u64 group;
	struct level levels[DEPTH];
};

MAP(cursors, cursor, SLOTS);

/* What a loop is given has to be on the stack. */
struct frame {
	struct cursor *c;
};

/* Reads a member; says so if that fails. Without a branch, of which the verifier would follow both sides. */
#define READ(to, from) (c->failed |= bpf_core_read(&(to), sizeof(to), &(from)))

/* Reads from a computed address. */
#define READ_AT(to, size, address) (c->failed |= bpf_probe_read_kernel((to), (size), (address)))

/* Reads one member and returns it. */
#define GET(from)                                                \
	({                                                       \
		typeof(from) got_ = 0;                           \
		READ(got_, from);                                \
		got_;                                            \
	})

/* Fills with zeros: what a read that must fail leaves. The compiler's own way makes thousands of instructions. */
static void clear(void *record, u32 size)
{
	bpf_probe_read_kernel(record, size, 0);
}

#define HAS(member) bpf_core_field_exists(member)

/* The table of files. */

static void take_locks(struct cursor *c, struct open_file *out, struct inode *inode)
{
	struct file_lock_context *context = GET(inode->i_flctx);

	if (!context)
		return;
	out->locks |= GET(context->flc_flock.next) != &context->flc_flock;
	out->locks |= GET(context->flc_posix.next) != &context->flc_posix;
	out->locks |= GET(context->flc_lease.next) != &context->flc_lease;
	/* Whose they are is not looked into. */
	if (out->locks)
		c->unproven |= DESCRIPTOR_TABLE;
}

/*
 * An empty pipe is like any other of its size. In one that holds a single piece, the counters tell of each
 * read and write, and position and length of the piece of those that neither take nor add a whole one. More
 * pieces are not looked into.
 */
static void take_pipe(struct cursor *c, struct open_file *out, struct inode *inode)
{
	struct pipe_inode_info *pipe = GET(inode->i_pipe);
	u32 head, tail, ring;
	struct pipe_buffer *piece;

	READ(head, pipe->head);
	READ(tail, pipe->tail);
	READ(ring, pipe->ring_size);
	out->state[1] = GET(pipe->max_usage);
	if (head == tail)
		return;
	if (head - tail != 1) {
		out->kind = OTHER;
		return;
	}
	out->state[0] = 1;
	out->state[2] = (u64)head << 32 | tail;
	piece = (void *)GET(pipe->bufs) + (u64)(tail & (ring - 1)) * bpf_core_type_size(struct pipe_buffer);
	out->state[3] = (u64)GET(piece->page);
	out->state[4] = GET(piece->offset);
	out->state[5] = GET(piece->len);
}

static void take_timer(struct cursor *c, struct open_file *out, struct timerfd_ctx *timer)
{
	u32 clock = GET(timer->clockid);

	/* Alarm clocks (8, 9) keep their timer in another structure; a running timer is never the same. */
	if (!HAS(timer->t.tmr.state) || clock > 7 || GET(timer->t.tmr.state) || GET(timer->tintv)) {
		out->kind = OTHER;
		return;
	}
	out->state[0] = GET(timer->ticks);
	out->state[1] = GET(timer->expired);
}

/* One step through a red-black tree, in order. `from`: 0 from above, 1 from the left. */
static long take_interest(u32 i, struct frame *frame)
{
	struct cursor *c = frame->c;
	struct rb_node *node = c->at, *next;

	if (!node)
		return 1;
	if (c->from == 0) {
		next = GET(node->rb_left);
		if (next) {
			c->at = next;
			return 0;
		}
		c->from = 1;
	}
	if (c->from == 1) {
		struct epitem *item = (void *)node - bpf_core_field_offset(struct epitem, rbn);
		u32 key = c->slot * INTERESTS + c->interests;
		struct interest *out;

		if (c->interests >= INTERESTS || !(out = bpf_map_lookup_elem(&interests, &key))) {
			c->failed = 1;
			return 1;
		}
		c->interests++;
		out->epoll = c->sum;
		READ(out->file, item->ffd.file);
		READ(out->fd, item->ffd.fd);
		READ(out->events, item->event.events);
		READ(out->data, item->event.data);
		next = GET(node->rb_right);
		if (next) {
			c->at = next;
			c->from = 0;
			return 0;
		}
	}
	next = (void *)(GET(node->__rb_parent_color) & ~3ul);
	if (next)
		c->from = GET(next->rb_left) == node ? 1 : 2;
	c->at = next;
	return 0;
}

static long take_file(u32 i, struct frame *frame)
{
	struct cursor *c = frame->c;
	struct file *file = 0;
	struct inode *inode;
	struct super_block *super;
	struct open_file *out;
	struct call *call;
	const void *operations;
	void *own;
	u32 key, type;
	u16 mode;

	if (i >= DESCRIPTORS)
		return 1;
	if ((i & 63) == 0) {
		/* The next word of both bitmaps. */
		if (i / 64 >= c->words)
			return 1;
		READ_AT(&c->bits, 8, c->open + i / 64);
		READ_AT(&c->close_bits, 8, c->close + i / 64);
	}
	if (!(c->bits >> (i & 63) & 1))
		return 0;
	key = c->slot;
	call = bpf_map_lookup_elem(&calls, &key);
	key = c->slot * FILES + c->files;
	if (!call || c->files >= FILES || !(out = bpf_map_lookup_elem(&files, &key))) {
		c->failed = 1;
		return 1;
	}
	c->files++;
	READ_AT(&file, sizeof(file), c->table + i);
	clear(out, sizeof(*out));
	out->fd = i;
	out->close_on_exec = c->close_bits >> (i & 63) & 1;
	out->file = (u64)file;
	READ(out->flags, file->f_flags);
	if (HAS(file->f_owner)) {
		struct fown_struct *owner = GET(file->f_owner);

		out->owner = (u64)owner;
		if (owner) {
			READ(out->owner_pid, owner->pid);
			READ(out->owner_signal, owner->signum);
		}
	} else {
		struct file___embedded *old = (void *)file;

		READ(out->owner_pid, old->f_owner.pid);
		READ(out->owner_signal, old->f_owner.signum);
	}
	READ(operations, file->f_op);
	READ(own, file->private_data);
	READ(inode, file->f_inode);
	READ(mode, inode->i_mode);
	READ(super, inode->i_sb);
	type = mode & 0170000;
	out->kind = OTHER;
	if ((u64)operations == call->operations[EVENT_COUNTER]) {
		struct eventfd_ctx *counter = own;

		out->kind = EVENT_COUNTER;
		READ(out->state[0], counter->count);
	} else if ((u64)operations == call->operations[SIGNAL_MASK]) {
		struct signalfd_ctx *mask = own;

		out->kind = SIGNAL_MASK;
		READ(out->state[0], mask->sigmask.sig[0]);
	} else if ((u64)operations == call->operations[TIMER]) {
		out->kind = TIMER;
		take_timer(c, out, own);
	} else if ((u64)operations == call->operations[EPOLL]) {
		struct eventpoll *poll = own;

		out->kind = EPOLL;
		READ(c->at, poll->rbr.rb_root.rb_node);
		c->from = 0;
		c->sum = (u64)file;
		bpf_loop(INTERESTS * 4, take_interest, frame, 0);
		if (c->at)
			c->failed = 1;
	} else if ((u64)operations == call->operations[PIDFD]) {
		out->kind = PIDFD;
	} else if (GET(super->s_magic) == 0x09041934) {
		/* Another anonymous inode: newer kernels give it the type of a regular file. */
	} else if (type == 0010000) {
		out->kind = PIPE;
		take_pipe(c, out, inode);
	} else if (type == 0140000) {
		out->kind = SOCKET;
	} else if (type == 0100000 || type == 0040000) {
		out->kind = PLAIN;
		READ(out->state[0], file->f_pos);
		take_locks(c, out, inode);
	} else if (type == 0020000 || type == 0060000) {
		out->kind = DEVICE;
	}
	return 0;
}

/* Whether there are descriptors beyond those that are looked at. */
static long take_beyond(u32 i, struct frame *frame)
{
	struct cursor *c = frame->c;
	u64 word = 0;

	if (i < DESCRIPTORS / 64)
		return 0;
	if (i >= c->words)
		return 1;
	READ_AT(&word, 8, c->open + i);
	if (word)
		c->unproven |= DESCRIPTOR_TABLE;
	return 0;
}

static void take_files(struct cursor *c, struct files_struct *table)
{
	struct fdtable *t = GET(table->fdt);

	c->table = GET(t->fd);
	c->open = GET(t->open_fds);
	c->close = GET(t->close_on_exec);
	c->words = GET(t->max_fds) / 64;
	bpf_loop(DESCRIPTORS, take_file, &(struct frame){c}, 0);
	if (c->words > DESCRIPTORS / 64) {
		if (c->words > 1 << 16)
			c->unproven |= DESCRIPTOR_TABLE;
		bpf_loop(1 << 16, take_beyond, &(struct frame){c}, 0);
	}
}

/* Threads. */

static long take_child(u32 i, struct frame *frame)
{
	struct cursor *c = frame->c;
	struct list_head *at = c->at;
	struct task_struct *child;
	struct thread *out;
	u32 key = c->slot * THREADS + c->threads;

	if (at == c->head)
		return 1;
	out = bpf_map_lookup_elem(&threads, &key);
	if (!out || !at || i >= CHILDREN) {
		c->unproven |= ATTRIBUTES | THREAD_ATTRIBUTES;
		return 1;
	}
	child = (void *)at - bpf_core_field_offset(struct task_struct, sibling);
	out->attributes.child[i & (CHILDREN - 1)] = GET(child->pid);
	out->attributes.children++;
	/* A dead one wants to be collected. */
	if (GET(child->exit_state))
		c->unproven |= ATTRIBUTES | THREAD_ATTRIBUTES;
	c->at = GET(at->next);
	return 0;
}

/*
 * The keys of a keyring, if they are few enough to lie in one node of its tree (whose pointers to leaves have a low
 * bit of 0, those to nodes 1). A key that takes the place of another has another serial number.
 */
static void take_keys(struct cursor *c, struct thread_attributes *out, struct key *ring)
{
	u64 root = (u64)GET(ring->keys.root);
	struct assoc_array_node *node = (void *)(root & ~3ul);

	if (!out->session_keys)
		return;
	if (out->session_keys > KEYS || (root & 3) != 1) {
		c->unproven |= ATTRIBUTES | THREAD_ATTRIBUTES;
		return;
	}
	for (u32 i = 0; i < KEYS; i++) {
		u64 leaf = (u64)GET(node->slots[i]);
		struct key *key = (void *)leaf;

		if (leaf & 1)
			c->unproven |= ATTRIBUTES | THREAD_ATTRIBUTES;
		else if (leaf)
			READ(out->session_key[i], key->serial);
	}
}

static void take_keyrings(struct cursor *c, struct thread_attributes *out, struct cred *cred)
{
	struct key *session;

	if (!HAS(cred->session_keyring))
		return;
	session = GET(cred->session_keyring);
	out->session_keyring = (u64)session;
	if (session) {
		out->session_serial = GET(session->serial);
		out->session_keys = GET(session->keys.nr_leaves_on_tree);
		take_keys(c, out, session);
	}
	/* What is in these is not recorded. */
	if (GET(cred->process_keyring) || GET(cred->thread_keyring))
		c->unproven |= ATTRIBUTES | THREAD_ATTRIBUTES;
}

static void take_credentials(struct cursor *c, struct identity *out, struct cred *cred)
{
	struct group_info *groups = GET(cred->group_info);
	struct user_namespace *users = GET(cred->user_ns);
	u32 count;

	READ(out->ids[0], cred->uid);
	READ(out->ids[1], cred->gid);
	READ(out->ids[2], cred->suid);
	READ(out->ids[3], cred->sgid);
	READ(out->ids[4], cred->euid);
	READ(out->ids[5], cred->egid);
	READ(out->ids[6], cred->fsuid);
	READ(out->ids[7], cred->fsgid);
	READ(out->secure_bits, cred->securebits);
	READ(out->capabilities[0], cred->cap_inheritable);
	READ(out->capabilities[1], cred->cap_permitted);
	READ(out->capabilities[2], cred->cap_effective);
	READ(out->capabilities[3], cred->cap_bset);
	READ(out->capabilities[4], cred->cap_ambient);
	out->users = (u64)users << 32 ^ GET(users->ns.inum);
	count = GET(groups->ngroups);
	out->groups = count;
	if (count > GROUPS)
		c->unproven |= IDENTITY;
	else if (count)
		READ_AT(out->group, count * sizeof(u32),
			(void *)groups + bpf_core_field_offset(struct group_info, gid));
}

#define NAMESPACE(index, member)                                 \
	do {                                                     \
		if (HAS(all->member)) {                          \
			typeof(all->member) one = GET(all->member); \
			if (one)                                 \
				READ(out->namespace[index], one->ns.inum); \
		}                                                \
	} while (0)

static void take_namespaces(struct cursor *c, struct identity *out, struct nsproxy *all)
{
	NAMESPACE(0, uts_ns);
	NAMESPACE(1, ipc_ns);
	NAMESPACE(2, mnt_ns);
	NAMESPACE(3, pid_ns_for_children);
	NAMESPACE(4, net_ns);
	NAMESPACE(5, time_ns);
	NAMESPACE(6, time_ns_for_children);
	NAMESPACE(7, cgroup_ns);
}

static void take_identity(struct cursor *c, struct identity *out, struct task_struct *task)
{
	struct task_struct *leader = c->leader, *parent;
	struct cred *cred = GET(task->cred);
	struct nsproxy *all = GET(task->nsproxy);
	struct signal_struct *signal = GET(task->signal);
	struct pid *group, *session;

	out->credentials = (u64)cred;
	out->real_credentials = (u64)GET(task->real_cred);
	/* Effective ones of their own have only tasks within a system call: nobody compares those. */
	if (out->real_credentials != out->credentials)
		c->unproven |= IDENTITY;
	out->namespaces = (u64)all;
	/* The same object as the leader's, just now, is as the leader's record says. */
	if (task == leader || cred != GET(leader->cred))
		take_credentials(c, out, cred);
	if (task == leader || all != GET(leader->nsproxy))
		take_namespaces(c, out, all);
	READ(out->filter_mode, task->seccomp.mode);
	READ(out->filters, task->seccomp.filter_count.counter);
	/* Filters are only ever added, in front: the first one is alive while it is the first. */
	READ(out->filter, task->seccomp.filter);
	READ(out->task_flags, task->atomic_flags);
	parent = GET(task->real_parent);
	READ(out->parent, parent->tgid);
	group = GET(signal->pids[2]);
	session = GET(signal->pids[3]);
	READ(out->process_group, group->numbers[0].nr);
	READ(out->session, session->numbers[0].nr);
	out->own_tables = (GET(task->files) != GET(leader->files)) | (GET(task->fs) != GET(leader->fs)) << 1;
	if (HAS(task->thread.features))
		out->features = GET(task->thread.features) | GET(task->thread.features_locked) << 32;
	if (HAS(task->numa_group))
		out->numa_group = (u64)GET(task->numa_group);
}

static void take_schedule(struct cursor *c, struct schedule *out, struct task_struct *task)
{
	u32 size = bpf_core_field_size(task->cpus_mask);

	if (size > sizeof(out->allowed))
		size = sizeof(out->allowed);
	READ_AT(out->allowed, size, __builtin_preserve_access_index(&task->cpus_mask));
	READ(out->policy, task->policy);
	READ(out->nice, task->static_prio);
	READ(out->priority, task->rt_priority);
	READ(out->deadline[0], task->dl.dl_runtime);
	READ(out->deadline[1], task->dl.dl_deadline);
	READ(out->deadline[2], task->dl.dl_period);
	READ(out->deadline_flags, task->dl.flags);
	out->reset_on_fork = BPF_CORE_READ_BITFIELD_PROBED(task, sched_reset_on_fork);
	/* The scheduler adjusts the slice of those that did not ask for one. */
	if (HAS(task->se.custom_slice) && GET(task->se.custom_slice))
		READ(out->slice, task->se.slice);
	if (HAS(task->uclamp_req))
		READ(out->clamps, task->uclamp_req);
	if (HAS(task->io_context)) {
		struct io_context *io = GET(task->io_context);

		if (io)
			out->io_priority = GET(io->ioprio);
	}
}

static void take_attributes(struct cursor *c, struct thread_attributes *out, struct task_struct *task)
{
	struct task_struct *leader = c->leader;
	struct cred *cred = GET(task->cred);
	u64 work;

	READ(out->pending, task->pending.signal);
	READ(out->stack, task->sas_ss_sp);
	READ(out->stack_size, task->sas_ss_size);
	READ(out->stack_flags, task->sas_ss_flags);
	READ(out->death_signal, task->pdeath_signal);
	READ(out->slack, task->timer_slack_ns);
	READ(out->clear_tid, task->clear_child_tid);
	READ(out->robust, task->robust_list);
	if (HAS(task->rseq)) {
		READ(out->rseq, task->rseq);
		READ(out->rseq_len, task->rseq_len);
		READ(out->rseq_signature, task->rseq_sig);
	} else {
		c->unproven |= THREAD_ATTRIBUTES;
	}
	READ(out->dispatch[0], task->syscall_dispatch.selector);
	READ(out->dispatch[1], task->syscall_dispatch.offset);
	READ(out->dispatch[2], task->syscall_dispatch.len);
	work = GET(task->thread_info.syscall_work);
	out->dispatch[3] = work & 1ull << bpf_core_enum_value(enum syscall_work_bit,
							      SYSCALL_WORK_BIT_SYSCALL_USER_DISPATCH);
	out->flags = GET(task->thread_info.flags) & c->flags;
	if (HAS(task->io_uring))
		READ(out->ring, task->io_uring);
	READ(out->personality, task->personality);
	/* PF_MCE_PROCESS, PF_MCE_EARLY. */
	out->memory_failure = GET(task->flags) & 0x08000080;
	if (HAS(task->mempolicy) && GET(task->mempolicy))
		c->unproven |= THREAD_ATTRIBUTES;
	out->tracees = GET(task->ptraced.next) != &task->ptraced;
	out->credentials = (u64)cred;
	if (task == leader || cred != GET(leader->cred))
		take_keyrings(c, out, cred);
	READ(out->name, task->comm);
	c->head = &task->children;
	c->at = GET(task->children.next);
	bpf_loop(CHILDREN + 1, take_child, &(struct frame){c}, 0);
}

static long take_thread(u32 i, struct frame *frame)
{
	struct cursor *c = frame->c;
	struct list_head *node = c->at;
	struct task_struct *task;
	struct thread *out;
	struct pid *pid;
	u32 key = c->slot * THREADS + c->threads;
	u32 before = c->unproven;
	void *head = c->head;

	if (node == head)
		return 1;
	if (!node || c->threads >= THREADS || !(out = bpf_map_lookup_elem(&threads, &key))) {
		c->failed = 1;
		return 1;
	}
	task = (void *)node - bpf_core_field_offset(struct task_struct, thread_node);
	clear(out, sizeof(*out));
	pid = GET(task->thread_pid);
	READ_AT(&out->tid, sizeof(out->tid),
		(void *)pid + bpf_core_field_offset(struct pid, numbers) +
			(u64)c->level * bpf_core_type_size(struct upid) + bpf_core_field_offset(struct upid, nr));
	READ(out->started, task->start_boottime);
	out->activity.switches = GET(task->nvcsw) + GET(task->nivcsw);
	READ(out->activity.state, task->__state);
	READ(out->activity.on_processor, task->on_cpu);
	READ(out->activity.queued, task->on_rq);
	c->unproven = 0;
	take_attributes(c, &out->attributes, task);
	take_schedule(c, &out->schedule, task);
	take_identity(c, &out->identity, task);
	out->unproven = c->unproven;
	c->unproven |= before;
	c->threads++;
	c->head = head;
	c->at = GET(node->next);
	return 0;
}

/* Processes. */

static u64 mm_flags(struct cursor *c, struct mm_struct *mm)
{
	struct mm_struct___bitmap *new = (void *)mm;
	u64 flags = 0;

	if (HAS(mm->flags))
		READ(flags, mm->flags);
	else
		READ(flags, new->flags.__mm_flags[0]);
	return flags;
}

/*
 * Goes down to a node of a maple tree, whose address has its type in bits 3 to 6: 1 is a leaf, 2 a node of the same
 * shape, 3 one of another.
 */
static void descend(struct cursor *c, u64 entry, u64 max)
{
	u64 node = entry & ~255ull;
	u32 type = entry >> 3 & 15, depth = c->depth;
	struct level *level = &c->levels[depth & (DEPTH - 1)];

	if (depth >= DEPTH || type < 1 || type > 3 || !node) {
		c->listed = 0;
		c->depth = 0;
		return;
	}
	level->leaf = type == 1;
	level->max = max;
	level->next = 0;
	if (type == 3) {
		level->pivots = node + bpf_core_field_offset(struct maple_arange_64, pivot);
		level->slots = node + bpf_core_field_offset(struct maple_arange_64, slot);
		level->count = bpf_core_field_size(struct maple_arange_64, pivot) / 8;
	} else {
		level->pivots = node + bpf_core_field_offset(struct maple_range_64, pivot);
		level->slots = node + bpf_core_field_offset(struct maple_range_64, slot);
		level->count = bpf_core_field_size(struct maple_range_64, pivot) / 8;
	}
	c->depth = depth + 1;
}

static void take_mapping(struct cursor *c, struct vm_area_struct *area)
{
	u32 key = c->slot * MAPPINGS + c->mappings;
	struct mapping *out;
	struct file *file;

	if (c->mappings >= MAPPINGS || !(out = bpf_map_lookup_elem(&mappings, &key))) {
		c->listed = 0;
		c->depth = 0;
		return;
	}
	c->mappings++;
	READ(out->start, area->vm_start);
	READ(out->end, area->vm_end);
	READ(out->flags, area->vm_flags);
	READ(out->offset, area->vm_pgoff);
	READ(out->operations, area->vm_ops);
	READ(out->data, area->vm_private_data);
	out->inode = 0;
	file = GET(area->vm_file);
	if (file)
		READ(out->inode, file->f_inode);
	/* A name or a memory policy may be another one at the same address. */
	if (HAS(area->anon_name) && GET(area->anon_name))
		c->listed = 0;
	if (HAS(area->vm_policy) && GET(area->vm_policy))
		c->listed = 0;
}

/* One child of the node that is being walked. A last value of 0 stands for that of the node. */
static long take_slot(u32 i, struct frame *frame)
{
	struct cursor *c = frame->c;
	u32 depth = c->depth, next;
	struct level *level = &c->levels[(depth - 1) & (DEPTH - 1)];
	u64 last = 0, entry = 0;

	if (!depth)
		return 1;
	next = level->next++;
	if (next < level->count)
		READ_AT(&last, sizeof(last), (void *)level->pivots + (u64)next * 8);
	if ((!last && next) || next >= level->count)
		last = level->max;
	READ_AT(&entry, sizeof(entry), (void *)level->slots + (u64)next * 8);
	/* The last child: go on above afterwards. */
	if (last >= level->max)
		c->depth = depth - 1;
	if (level->leaf) {
		if (entry)
			take_mapping(c, (void *)entry);
	} else {
		descend(c, entry, last);
	}
	return 0;
}

static void take_mappings(struct cursor *c, struct mm_struct *mm)
{
	u64 root;

	if (!HAS(mm->mm_mt.ma_root))
		return;
	READ(root, mm->mm_mt.ma_root);
	if ((root & 3) != 2)
		return;
	c->listed = 1;
	c->depth = 0;
	descend(c, root, ~0ull);
	bpf_loop(MAPPINGS * 4, take_slot, &(struct frame){c}, 0);
	if (c->depth)
		c->listed = 0;
}

/* Counts the times that the address space was locked for a change; 0 if this kernel does not. */
static u64 sequence(struct cursor *c, struct mm_struct *mm)
{
	struct mm_struct___counter *old = (void *)mm;

	/* One more bit, so that no count is 0. */
	if (HAS(mm->mm_lock_seq))
		return GET(mm->mm_lock_seq.sequence) | 1ull << 32;
	if (HAS(old->mm_lock_seq))
		return (u32)GET(old->mm_lock_seq) | 1ull << 32;
	return 0;
}

static void take_layout(struct cursor *c, struct layout *out, struct mm_struct *mm)
{
	out->mm = (u64)mm;
	READ(out->brk, mm->brk);
	READ(out->start_brk, mm->start_brk);
	READ(out->start_stack, mm->start_stack);
	READ(out->code[0], mm->start_code);
	READ(out->code[1], mm->end_code);
	READ(out->data[0], mm->start_data);
	READ(out->data[1], mm->end_data);
	READ(out->arguments[0], mm->arg_start);
	READ(out->arguments[1], mm->arg_end);
	READ(out->environment[0], mm->env_start);
	READ(out->environment[1], mm->env_end);
	READ(out->total, mm->total_vm);
	READ(out->locked, mm->locked_vm);
	READ(out->pinned, mm->pinned_vm);
	READ(out->data_pages, mm->data_vm);
	READ(out->exec_pages, mm->exec_vm);
	READ(out->stack_pages, mm->stack_vm);
	READ(out->default_flags, mm->def_flags);
	out->count = GET(mm->map_count);
}

static void take_process_attributes(struct cursor *c, struct attributes *out, struct task_struct *task,
				    struct mm_struct *mm)
{
	struct signal_struct *signal = GET(task->signal);
	struct sighand_struct *handlers = GET(task->sighand);
	struct fs_struct *fs = GET(task->fs);
	u64 timer;

	if (bpf_core_type_size(struct k_sigaction) != sizeof(struct k_sigaction))
		c->unproven |= ATTRIBUTES;
	READ(out->actions, handlers->action);
	READ(out->pending, signal->shared_pending.signal);
	out->flags = mm_flags(c, mm);
	READ(out->timers[0], signal->it[0].expires);
	READ(out->timers[1], signal->it[0].incr);
	READ(out->timers[2], signal->it[1].expires);
	READ(out->timers[3], signal->it[1].incr);
	READ(out->timers[4], signal->it_real_incr);
	if (HAS(signal->real_timer.state))
		out->timers[5] = GET(signal->real_timer.state);
	else
		c->unproven |= ATTRIBUTES;
	if (HAS(signal->posix_timers)) {
		READ(timer, signal->posix_timers);
		/* Before Linux 6.12 an empty list points to itself. */
		if (timer != (u64)__builtin_preserve_access_index(&signal->posix_timers))
			out->timers[6] = timer;
	}
	/* A running timer is never the same. */
	if (out->timers[0] | out->timers[1] | out->timers[2] | out->timers[3] | out->timers[4] | out->timers[5] |
	    out->timers[6])
		c->unproven |= ATTRIBUTES;
	out->terminal = (u64)GET(signal->tty);
	READ(out->umask, fs->umask);
	if (HAS(mm->membarrier_state))
		READ(out->membarrier, mm->membarrier_state);
	out->subreaper = BPF_CORE_READ_BITFIELD_PROBED(signal, is_child_subreaper);
}

static void take_limits(struct cursor *c, struct limits *out, struct signal_struct *signal, struct mm_struct *mm)
{
	READ(out->resources, signal->rlim);
	out->flags = mm_flags(c, mm);
	out->oom_score = GET(signal->oom_score_adj);
	out->oom_score_least = GET(signal->oom_score_adj_min);
}

static void take_place(struct cursor *c, struct place *out, struct task_struct *task, struct mm_struct *mm)
{
	struct fs_struct *fs = GET(task->fs);
	struct file *executable = GET(mm->exe_file);
	struct nsproxy *all = GET(task->nsproxy);
	struct mnt_namespace *mounts = GET(all->mnt_ns);

	READ(out->root_mount, fs->root.mnt);
	READ(out->root, fs->root.dentry);
	READ(out->directory_mount, fs->pwd.mnt);
	READ(out->directory, fs->pwd.dentry);
	out->executable = (u64)executable;
	READ(out->executable_inode, executable->f_inode);
	out->mounts = (u64)mounts;
	READ(out->mounts_event, mounts->event);
}

static void take_ipc(struct cursor *c, struct ipc *out, struct task_struct *task)
{
	struct nsproxy *all = GET(task->nsproxy);
	struct ipc_namespace *space = GET(all->ipc_ns);

	out->space = (u64)space;
	if (HAS(space->ids)) {
		READ(out->in_use[0], space->ids[0].in_use);
		READ(out->in_use[1], space->ids[1].in_use);
		READ(out->in_use[2], space->ids[2].in_use);
	}
	if (HAS(space->mq_queues_count))
		READ(out->queues, space->mq_queues_count);
	/* As many are not the same. */
	if (out->in_use[0] | out->in_use[1] | out->in_use[2] | out->queues)
		c->unproven |= IPC;
}

/* The task that a pid descriptor of the caller names. */
static struct task_struct *task_of(struct cursor *c, s32 pidfd)
{
	struct task_struct *self = (void *)bpf_get_current_task();
	struct files_struct *files = GET(self->files);
	struct fdtable *table = GET(files->fdt);
	struct file **descriptors = GET(table->fd), *file = 0;
	struct inode *inode;
	struct pid *pid, *own;
	struct hlist_node *link;

	if (pidfd < 0 || (u32)pidfd >= GET(table->max_fds) ||
	    bpf_probe_read_kernel(&file, sizeof(file), descriptors + (u32)pidfd) || !file) {
		c->failed = 1;
		return 0;
	}
	inode = GET(file->f_inode);
	pid = GET(inode->i_private);
	/* Before Linux 6.9 all such descriptors shared an inode. */
	if (!pid)
		pid = GET(file->private_data);
	own = GET(self->thread_pid);
	c->level = GET(own->level);
	if (c->level > GET(pid->level))
		c->failed = 1;
	link = GET(pid->tasks[0].first);
	if (!link)
		return 0;
	return (void *)link - bpf_core_field_offset(struct task_struct, pid_links);
}

static long take_process(u32 i, struct frame *frame)
{
	struct cursor *c = frame->c;
	u32 slot = c->slot, key = slot * PROCESSES + i;
	struct call *call = bpf_map_lookup_elem(&calls, &slot);
	struct process *out;
	struct task_struct *task;
	struct mm_struct *mm;
	struct signal_struct *signal;

	if (i >= PROCESSES || !call || i >= call->processes || !(out = bpf_map_lookup_elem(&processes, &key)))
		return 1;
	clear(out, sizeof(*out));
	c->failed = 0;
	c->unproven = 0;
	out->first_thread = c->threads;
	out->first_file = c->files;
	out->first_interest = c->interests;
	out->failed = 1;
	task = task_of(c, call->pidfds[i & (PROCESSES - 1)]);
	mm = task ? GET(task->mm) : 0;
	if (!mm)
		return 0;
	c->leader = task;
	if (!i && HAS(task->cgroups) && bpf_core_enum_value_exists(enum cgroup_subsys_id, memory_cgrp_id)) {
		struct css_set *groups = GET(task->cgroups);

		READ_AT(&c->group, sizeof(c->group),
			(void *)groups + bpf_core_field_offset(struct css_set, subsys) +
				bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id) * sizeof(void *));
	}
	signal = GET(task->signal);
	READ(out->pid, task->tgid);
	READ(out->tables, mm->pgtables_bytes);
	out->sequence = sequence(c, mm);
	out->first_mapping = c->mappings;
	if (!out->sequence || out->sequence != call->sequences[i & (PROCESSES - 1)]) {
		c->listed = 0;
		take_mappings(c, mm);
		out->listed = c->listed;
		out->mappings = c->mappings - out->first_mapping;
		if (out->mappings != (u32)GET(mm->map_count))
			out->listed = 0;
	}
	READ(out->layout.execs, task->self_exec_id);
	take_layout(c, &out->layout, mm);
	take_process_attributes(c, &out->attributes, task, mm);
	take_limits(c, &out->limits, signal, mm);
	take_place(c, &out->place, task, mm);
	take_ipc(c, &out->ipc, task);
	take_files(c, GET(task->files));
	c->head = &signal->thread_head;
	c->at = GET(signal->thread_head.next);
	bpf_loop(THREADS + 1, take_thread, frame, 0);
	out->threads = c->threads - out->first_thread;
	out->files = c->files - out->first_file;
	out->interests = c->interests - out->first_interest;
	if (out->threads != (u32)GET(signal->nr_threads))
		c->failed = 1;
	out->unproven = c->unproven;
	out->failed = c->failed != 0;
	return 0;
}

/*
 * Event counters are per processor, and where those lie is no symbol that a program may name on every kernel. But
 * each run queue is per processor, too, and can be reached from any task; user space knows the distance.
 */
static void take_batch(struct cursor *c, struct cpu_fbatches *batches)
{
	u32 count = GET(batches->lru_lazyfree.nr);

	for (u32 i = 0; i < 31; i++) {
		struct folio *folio;
		u64 group = 0;

		if (i >= count || i >= bpf_core_field_size(batches->lru_lazyfree.folios) / sizeof(folio))
			break;
		READ(folio, batches->lru_lazyfree.folios[i]);
		if (c->group && HAS(folio->memcg_data))
			group = GET(folio->memcg_data) & ~7ull;
		c->pending += group == c->group;
	}
}

static long take_events(u32 i, struct frame *frame)
{
	struct cursor *c = frame->c;
	u32 slot = c->slot;
	struct call *call = bpf_map_lookup_elem(&calls, &slot);
	struct cfs_rq **queues = c->head, *queue = 0;
	void *run_queue;
	u64 count = 0;

	if (!call || i >= call->processors)
		return 1;
	READ_AT(&queue, sizeof(queue), queues + i);
	run_queue = GET(queue->rq);
	READ_AT(&count, sizeof(count),
		run_queue + call->events + bpf_core_enum_value(enum vm_event_item, PGLAZYFREE) * sizeof(count));
	c->sum += count;
	take_batch(c, run_queue + call->batches);
	return 0;
}

static void count_lazy_frees(struct cursor *c, struct call *call)
{
	struct task_struct *self = (void *)bpf_get_current_task();
	struct task_group *group;

	call->has_lazy_frees = 0;
	call->pending = 0;
	if (!call->events || !call->batches || !HAS(self->sched_task_group) || !HAS(((struct task_group *)0)->cfs_rq) || !HAS(((struct cfs_rq *)0)->rq) ||
	    !bpf_core_enum_value_exists(enum vm_event_item, PGLAZYFREE))
		return;
	c->failed = 0;
	c->sum = 0;
	group = GET(self->sched_task_group);
	c->head = GET(group->cfs_rq);
	bpf_loop(PROCESSORS, take_events, &(struct frame){c}, 0);
	call->lazy_frees = c->sum;
	call->pending = c->pending;
	call->has_lazy_frees = !c->failed;
}

struct argument {
	u32 slot;
	u32 pad;
};

static struct cursor *begin(u32 slot)
{
	struct cursor *c = bpf_map_lookup_elem(&cursors, &slot);

	if (c) {
		clear(c, sizeof(*c));
		c->slot = slot;
	}
	return c;
}

SEC("syscall")
int census(struct argument *argument)
{
	u32 slot = argument->slot;
	struct cursor *c = begin(slot);
	struct call *call = bpf_map_lookup_elem(&calls, &slot);

	if (!call || !c)
		return 1;
	c->flags = call->flags;
	bpf_loop(PROCESSES, take_process, &(struct frame){c}, 0);
	call->threads = c->threads;
	call->files = c->files;
	call->interests = c->interests;
	call->mappings = c->mappings;
	count_lazy_frees(c, call);
	return 0;
}

/* The addresses of the operations of the caller's own descriptors `pidfds`, for `operations`. */
SEC("syscall")
int operations(struct argument *argument)
{
	u32 slot = argument->slot;
	struct cursor *c = begin(slot);
	struct call *call = bpf_map_lookup_elem(&calls, &slot);
	struct task_struct *self = (void *)bpf_get_current_task();
	struct files_struct *files;
	struct fdtable *table;
	struct file **descriptors;

	if (!call || !c)
		return 1;
	files = GET(self->files);
	table = GET(files->fdt);
	descriptors = GET(table->fd);
	for (u32 i = 0; i < KINDS; i++) {
		s32 fd = call->pidfds[i];
		struct file *file = 0;
		const void *operations = 0;

		if (fd >= 0 && (u32)fd < GET(table->max_fds)) {
			READ_AT(&file, sizeof(file), descriptors + (u32)fd);
			READ(operations, file->f_op);
		}
		call->operations[i] = (u64)operations;
	}
	return c->failed != 0;
}
