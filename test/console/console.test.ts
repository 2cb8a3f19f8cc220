/** The tier in one process, so that all its files share one browser and one daemon. Another view is another line. */
import { frameTests } from './frame.ts';
import { listTests } from './lists.ts';
import { signInTests } from './sign-in.ts';
import { vmTests } from './vm.ts';
import { vmsTests } from './vms.ts';

frameTests();
signInTests();
vmsTests();
vmTests();
listTests();
