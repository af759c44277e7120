#!/bin/sh
# Where upstream's deployments start the invoker: Ansible says
#   /bin/sh -c "exec /init.sh --id 0 --uniqueName 0 >> /logs/invoker0_logs.log 2>&1"
# and the Helm chart
#   /bin/bash -c "/init.sh --uniqueName $INVOKER_NAME"
# The lone argument `0` is upstream's leftover and means nothing.
[ "$#" -eq 1 ] && [ "$1" = 0 ] && shift
exec /usr/bin/rewind invoker "$@"
