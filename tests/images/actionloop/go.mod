module openwhisk

go 1.23
