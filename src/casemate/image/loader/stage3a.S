# stage3a: the first code of a Secure Execution image, in the clear, loaded at 0x10000.
#
# It tells the machine where the header and the components are (DIAGNOSE 308, subcode 8, with the address of the parameter
# block), then asks to be opened and started (subcode 10). Where that works, the next instruction is the first of stage3b,
# which was behind the encryption. Where it does not, the processor waits, disabled, and the address in its PSW says why:
# docs/formats/secure-execution-image.md has the list.
#
# There are two entries: 0x10000, to which loaders of Linux jump, and 0x11000, to which the PSW at address 0 points.
# Such loaders write the place of an initrd and a command line between the two, where Linux would look; nobody looks here.
#
# The last 24 bytes are filled in by who packs: offset of the header, its size, offset of the parameter block. Both
# offsets count from the first of these 24 bytes.

        .equ    PROGRAM_CODE, 0x8e              # lowcore: code of the last program interruption
        .equ    PROGRAM_NEW_PSW, 0x1d0          # lowcore: what runs after one
        .equ    IPIB_HEADER, 120                # parameter block: address and size of the header
        .equ    SET_PARAMETERS, 8
        .equ    OPEN_AND_START, 10
        .equ    DONE, 1

        .text
        .globl  _start
_start: jg      main

        .org    0x1000
main:   lhi     %r1, 1
        sigp    %r1, %r0, 0x12                  # to z/Architecture, where the machine is not there yet
        sam64
        larl    %r2, on_exception
        lgrl    %r3, running
        stg     %r3, PROGRAM_NEW_PSW(%r0)
        stg     %r2, PROGRAM_NEW_PSW + 8(%r0)

        larl    %r4, header_offset
        lgrl    %r2, block_offset
        agr     %r2, %r4                        # the parameter block
        lgrl    %r5, header_offset
        agr     %r5, %r4
        stg     %r5, IPIB_HEADER(%r2)
        lgrl    %r5, header_size
        stg     %r5, IPIB_HEADER + 8(%r2)

        lghi    %r3, 0
        lghi    %r6, SET_PARAMETERS
        diag    %r2, %r6, 0x308                 # the answer is in the register after the first, r3
        chi     %r3, DONE
        jne     failed
        lghi    %r2, 0
        lghi    %r3, 0
        lghi    %r6, OPEN_AND_START
        diag    %r2, %r6, 0x308                 # returns only where it failed
failed: llgfr   %r3, %r3                        # the machine's answer, and that of its ultravisor above it
        sllg    %r6, %r6, 32
stop:   ogr     %r3, %r6
        llihf   %r5, 0x0ca50000
        ogr     %r3, %r5
        larl    %r4, waiting
        stg     %r3, 8(%r4)
        lpswe   0(%r4)

on_exception:
        llgh    %r3, PROGRAM_CODE(%r0)
        lghi    %r6, 0xe
        sllg    %r6, %r6, 32
        j       stop

        .balign 8
running:
        .quad   0x0000000180000000              # 64-bit addressing, nothing enabled
waiting:
        .quad   0x0002000180000000, 0

header_offset:
        .quad   0
header_size:
        .quad   0
block_offset:
        .quad   0
