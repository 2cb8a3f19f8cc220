/** The tier in one process, so that all its files share one browser and one daemon. Another view is another line. */
import './frame.ts';
import './sign-in.ts';
import './vms.ts';
