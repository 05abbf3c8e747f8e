// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * The sensor: reports every file that a watched container executes or maps executable, with the
 * digest that IMA has of that very file, whether that can be believed, its path as the container sees
 * it, and whose it is. Where a container has a list of what may run in it, all else is refused, and
 * that is reported. One concept a header:
 *
 *	lineage.h	whose a task is
 *	namespaces.h	mount namespaces that containers make
 *	forgotten.h	files that there was no room for
 *	digests.h	which digest is believed
 *	report.h	events, and the ring
 *	allowed.h	enforcement
 *	told.h		who is told of what a task does
 *	uses.h		files that run, and are read
 *	programs.h	programs, and who comes from outside
 *	scripts.h	scripts, and what else an overlay shows, for as long as they are in use
 *	mapped.h	files that were mapped shared and writable
 *	memory.h	executable memory
 *	guard.h		what changes under a program, and who reaches for the sensor
 *	lent.h		pages of files that the kernel keeps, and writes to
 */
#include "kernel.h"
#include "sensor.h"

#include "lineage.h"
#include "forgotten.h"
#include "digests.h"
#include "report.h"
#include "allowed.h"
#include "told.h"
#include "uses.h"
#include "programs.h"
#include "mapped.h"
#include "memory.h"
#include "guard.h"
#include "lent.h"
#include "namespaces.h"

char _license[] SEC("license") = "GPL";
