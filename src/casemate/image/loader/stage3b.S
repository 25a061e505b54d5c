# stage3b: the first code behind the encryption. The machine's ultravisor has decrypted all components where they stood, and
# starts this one, at any address, in 64-bit mode with nothing enabled.
#
# It moves the kernel to 0x10000, where it was linked to run (the file of a kernel is a picture of memory from address 0, of
# which the first 64 KiB are not used), the command line into it, writes down where the initrd is, and starts the kernel.
# The kernel moves downwards: its place begins below the first component and so ends before where it comes from ends.
# Components are whole pages, so whole pages are moved.
#
# Where something can't be, the processor waits, disabled, and the address in its PSW says what.
#
# The last 64 bytes are filled in by who packs: address and size of kernel, command line and initrd, then a PSW.

        .equ    IMAGE, 0x10000                  # the kernel, with Linux' parameter area in its second page
        .equ    INITRD, IMAGE + 0x408           # address and size
        .equ    LARGEST_CMDLINE, IMAGE + 0x430  # 0 in kernels before 5.18
        .equ    CMDLINE, IMAGE + 0x480
        .equ    OLD_LARGEST_CMDLINE, 896

        .text
        .globl  _start
_start: larl    %r13, arguments
        lmg     %r2, %r7, 0(%r13)               # kernel, command line, initrd: address and size each

        llilf   %r8, IMAGE + 0x1000
        lghi    %r0, 1                          # the reason, should it be one
        clgr    %r3, %r8
        jl      stop
        llilf   %r8, IMAGE
        lgr     %r9, %r2
        agr     %r9, %r8
        lgr     %r1, %r3
        sgr     %r1, %r8
        brasl   %r14, move

        llilf   %r8, LARGEST_CMDLINE
        lg      %r1, 0(%r8)
        ltgr    %r1, %r1
        jne     0f
        lghi    %r1, OLD_LARGEST_CMDLINE
0:      lghi    %r0, 2
        clgr    %r5, %r1
        jh      stop
        ltgr    %r5, %r5
        je      stop
        llilf   %r8, CMDLINE
        lgr     %r9, %r4
        lghi    %r0, 3
        lgr     %r1, %r5
1:      lghi    %r10, 0                         # byte by byte: what follows the command line belongs to the kernel
        ic      %r10, 0(%r9)
        stc     %r10, 0(%r8)
        la      %r8, 1(%r8)
        la      %r9, 1(%r9)
        brctg   %r1, 1b
        ltgr    %r10, %r10                      # the last one ends the text
        jne     stop

        llilf   %r8, INITRD
        stmg    %r6, %r7, 0(%r8)
        lpswe   48(%r13)

# Move r1 bytes, filled up to pages of 256, from r9 to r8, which is lower.
move:   aghi    %r1, 255
        srlg    %r1, %r1, 8
2:      mvc     0(256, %r8), 0(%r9)
        la      %r8, 256(%r8)
        la      %r9, 256(%r9)
        brctg   %r1, 2b
        br      %r14

stop:   llihf   %r5, 0x0ca5000b
        ogr     %r0, %r5
        larl    %r4, waiting
        stg     %r0, 8(%r4)
        lpswe   0(%r4)

        .balign 8
waiting:
        .quad   0x0002000180000000, 0

arguments:
        .space  64
