import {BpfObject,attachClsact,queryClsact} from '/work/main/src/native/bpf.js';
import {openNamespace,withNetns,interfaceIndex} from '/work/main/src/native/kernel.js';
const o=BpfObject.open('/work/main/build/bpf/steer.bpf.o');o.load();
const p=o.program('steer');
withNetns(openNamespace('/run/netns/nstest11858'),()=>{const i=interfaceIndex('a')!;
try{console.log('egress on ingress qdisc', attachClsact(p,i,'egress',{priority:5,handle:7}));console.log(queryClsact(i,'egress',{priority:5,handle:7}),queryClsact(i,'ingress',{priority:5,handle:7}))}catch(e){console.log(String(e))}
});
