// Starts a program as process 1 of fresh pid, mount and IPC namespaces, inside some control groups.
// usage: launch CGROUP_PROCS[:CGROUP_PROCS...] PIDFILE PROGRAM [ARG...]
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <signal.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
    int go[2];
    char byte;
    if (argc < 4 || pipe(go)) return 120;
    pid_t pid = syscall(SYS_clone, CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | SIGCHLD, 0, 0, 0, 0);
    if (pid < 0) { perror("clone"); return 121; }
    if (pid == 0) {
        close(go[1]);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (read(go[0], &byte, 1) != 1) _exit(122);
        close(go[0]);
        if (mount("none", "/", 0, MS_REC | MS_PRIVATE, 0) || mount("proc", "/proc", "proc", 0, 0)) _exit(123);
        // Other mounts of this machine come and go; they are none of the sandbox.
        char line[4096], point[4096];
        FILE *mounts = fopen("/proc/self/mountinfo", "r");
        while (mounts && fgets(line, sizeof line, mounts))
            if (sscanf(line, "%*s %*s %*s %*s %4095s", point) == 1 && 
                strcmp(point, "/") && strncmp(point, "/proc", 5) && strncmp(point, "/dev", 4) && strncmp(point, "/sys", 4))
                umount2(point, MNT_DETACH);
        if (mounts) fclose(mounts);
        execvp(argv[3], argv + 3);
        perror(argv[3]);
        _exit(124);
    }
    FILE *f;
    for (char *group = strtok(argv[1], ":"); group; group = strtok(0, ":")) {
        f = fopen(group, "w");
        if (!f || fprintf(f, "%d\n", pid) < 0 || fclose(f)) { perror(group); kill(pid, SIGKILL); return 125; }
    }
    f = fopen(argv[2], "w");
    if (!f || fprintf(f, "%d\n", pid) < 0 || fclose(f)) { perror(argv[2]); kill(pid, SIGKILL); return 126; }
    if (write(go[1], "g", 1) != 1) return 127;
    close(go[0]); close(go[1]); close(0); close(1);
    int status;
    while (waitpid(pid, &status, 0) < 0) ;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}
